"""JPEGs with damaged image data are rejected, or marked as damaged if accepted."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.errors import ImageError
from tests.support.jpegs import DAMAGE, EOI, crop_photo, find_image_data, flip_bit, is_visibly_different, zero_out
from tests.support.sample_images import decode_error_class, encode_as

DATA = Path(__file__).parent / "data"
MODES = {
    "baseline": {},
    "4:4:4": {"subsampling": "4:4:4"},
    "optimised": {"optimize": True, "quality": 60},
    "progressive": {"progressive": True},
    "restart intervals": {"restart_marker_rows": 1},
}
UNDETECTABLE = ("lost 1", "lost 100", "noise of 512", "sectors exchanged", "continued by another file")
"""Kinds of damage that may decode to the right number of blocks without a warning."""


def encode_kind(rgb: np.ndarray, colours: str, options: dict[str, object]) -> bytes:
    return encode_as(Image.fromarray(rgb).convert(colours), "JPEG", **{"quality": 90, **options})


def iterate_outcomes(colours: str, options: dict[str, object], positions: int) -> Iterator[tuple[str, str]]:
    """Yield (kind, outcome) of each kind of damage at places all over the image data.

    The outcome is an error class, "intact" or "silent".
    """
    data, neighbour = (encode_kind(crop_photo(300, 200, name), colours, options) for name in ("coffee", "astronaut"))
    true_samples = decode_image(data).rgb
    # Damage starts after a twentieth of the data: earlier, "continued by another file" is an intact other image.
    start, end = find_image_data(data)
    start += (end - start) // 20
    for kind, damage in DAMAGE.items():
        for n in range(positions):
            damaged_data = damage(data, start + (end - start) * n // positions, neighbour)
            try:
                decoded = decode_image(damaged_data)
                yield kind, "silent" if is_visibly_different(decoded.rgb, true_samples) else "intact"
            except ImageError as e:
                yield kind, e.error_class
                accepted_image = decode_image(damaged_data, accept_damaged=True) if e.error_class == "DamagedImage" else None
                assert accepted_image is None or (
                    accepted_image.is_damaged and accepted_image.rgb.shape == true_samples.shape
                )


def check_outcomes(colours: str, options: dict[str, object], positions: int) -> None:
    """Check that all damage is detected, and most damage of the kinds in UNDETECTABLE."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in DAMAGE}
    for kind, outcome in iterate_outcomes(colours, options, positions):
        counts[kind][outcome] += 1
    silent_counts = {kind: count["silent"] for kind, count in counts.items() if count["silent"]}
    assert silent_counts.keys() <= set(UNDETECTABLE), counts
    undetectable = sum((counts[kind] for kind in UNDETECTABLE), Counter[str]())
    assert undetectable["silent"] < undetectable.total() / 3, undetectable


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_jpeg_damage_is_never_silent(mode: str, colours: str) -> None:
    """Zero sectors, lost bytes, truncated files and files that run into each other."""
    check_outcomes(colours, MODES[mode], positions=4)


@pytest.mark.chaos
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_jpeg_damage_is_never_silent_at_many_places(mode: str, colours: str) -> None:
    check_outcomes(colours, MODES[mode], positions=60)


@pytest.mark.chaos
def test_jpeg_flipped_bits_are_rarely_visible(figure: Callable[[str, str], None]) -> None:
    """A flipped bit often decodes without a warning; count how often it is visible."""
    generator, counts = random.Random(0), Counter[str]()
    for mode, options in MODES.items():
        data = encode_kind(crop_photo(300, 200), "RGB", options)
        true_samples = decode_image(data).rgb
        start, end = find_image_data(data)
        for _ in range(200):
            try:
                decoded = decode_image(flip_bit(data, generator.randrange(start, end), generator.randrange(8)))
                outcome = "silent" if is_visibly_different(decoded.rgb, true_samples) else "not visible"
            except ImageError:
                outcome = "detected"
            counts[outcome] += 1
            counts[f"{outcome}, {mode}"] += 1
    text = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    figure("one flipped bit in a JPEG of 300×200, 200 of each mode", text)
    assert counts["detected"] > counts["silent"]


def test_jpeg_damaged_tables_are_detected() -> None:
    """libjpeg accepts quantization steps of zero, and Huffman tables with repeated symbols."""
    data = encode_kind(crop_photo(96, 64), "RGB", {})
    steps = data.index(b"\xff\xdb")
    assert decode_error_class(zero_out(data, steps + 20, 30)) == "DamagedImage"
    table = data.index(b"\xff\xc4\0\xb5")
    assert decode_error_class(zero_out(data, table + 100, 40)) == "DamagedImage"


def test_jpeg_thumbnail_is_not_taken_for_the_image() -> None:
    """If bytes of the metadata are lost, the first image in the file is its thumbnail."""
    thumbnail = encode_as(Image.fromarray(crop_photo(16, 12)), "JPEG")
    data = encode_as(Image.fromarray(crop_photo(96, 64)), "JPEG")
    exif = b"\xff\xe1" + (len(thumbnail) + 18).to_bytes(2, "big") + b"Exif\0\0II*\0\x08\0\0\0\0\0" + thumbnail + b"\0\0"
    intact = data[:20] + exif + data[20:]
    assert decode_image(intact).rgb.shape == (64, 96, 3)
    for lost_bytes in range(4, 60):
        # If the loss ends before a marker, the rest is an intact JPEG of the thumbnail, followed by other bytes.
        if intact[20 + lost_bytes] != 0xFF:
            assert decode_error_class(intact[:20] + intact[20 + lost_bytes :]) in ("DamagedImage", "BrokenImage")


def test_jpeg_progressive_without_all_scans_is_damaged() -> None:
    """To libjpeg, a file cut between two scans is complete; the image would be blurred."""
    data = encode_kind(crop_photo(96, 64), "RGB", MODES["progressive"])
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 8
    for at in scans[1:]:
        # Tables may precede the header of a scan.
        tables_at = data.rfind(b"\xff\xc4", 0, at) if data[at - 2 : at] != b"\xff\xda" else at
        assert decode_error_class(data[: min(tables_at, at)] + EOI) == "DamagedImage"


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_progressive", "three_scans", "sampled_3x1", "sampled_4x2"])
def test_jpeg_rare_kind_with_missing_data_is_damaged(name: str) -> None:
    """For these kinds libjpeg has no warning, or its binding does not report the warning."""
    data = (DATA / f"{name}.jpg").read_bytes()
    start, end = find_image_data(data)
    for share in (0.3, 0.6, 0.9):
        for ending in (b"", EOI):
            classes = ("DamagedImage", "BrokenImage") if "progressive" in name else ("DamagedImage",)
            assert decode_error_class(data[: start + int((end - start) * share)] + ending) in classes


def test_jpeg_12_bits_with_missing_data_is_damaged() -> None:
    data = imagecodecs.jpeg8_encode(crop_photo(96, 64).astype(np.uint16) * 16, 90, bitspersample=12)
    start, end = find_image_data(data)
    for share in (0.3, 0.6, 0.9):
        assert decode_error_class(data[: start + int((end - start) * share)] + EOI) == "DamagedImage"


def test_jpeg_damage_message_says_what_to_do() -> None:
    data = encode_kind(crop_photo(96, 64), "RGB", {})
    with pytest.raises(ImageError, match=r"libjpeg: Corrupt JPEG data: premature end .* missing\. Restore the file\.$"):
        decode_image(data[: len(data) * 2 // 3] + EOI)
