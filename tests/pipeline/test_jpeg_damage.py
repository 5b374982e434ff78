"""JPEG with damaged or missing picture data is a reject that says so, or a row that says so: never an ok row like others."""

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
from tests.support.jpegs import DAMAGE, EOI, differs, flipped, photograph, picture_data, zeroed
from tests.support.sample_images import error_class, saved

DATA = Path(__file__).parent / "data"
MODES = {
    "baseline": {},
    "4:4:4": {"subsampling": "4:4:4"},
    "optimised": {"optimize": True, "quality": 60},
    "progressive": {"progressive": True},
    "restart intervals": {"restart_marker_rows": 1},
}
UNSEEN = ("lost 1", "lost 100", "noise of 512", "sectors exchanged", "continued by another file")
"""Kinds whose data may decode without any warning to as many blocks as there were."""


def file_of(rgb: np.ndarray, colours: str, options: dict[str, object]) -> bytes:
    return saved(Image.fromarray(rgb).convert(colours), "JPEG", **{"quality": 90, **options})


def outcomes(colours: str, options: dict[str, object], places: int) -> Iterator[tuple[str, str]]:
    """(kind, outcome) of each kind of damage at places all over the picture data: its class, "whole" or "silent"."""
    data, other = (file_of(photograph(300, 200, name), colours, options) for name in ("coffee", "astronaut"))
    truth = decode_image(data).rgb
    # Behind the first twentieth: what is cut off and continued before that is the whole other picture.
    start, end = picture_data(data)
    start += (end - start) // 20
    for kind, damage in DAMAGE.items():
        for n in range(places):
            damaged = damage(data, start + (end - start) * n // places, other)
            try:
                picture = decode_image(damaged)
                yield kind, "silent" if differs(picture.rgb, truth) else "whole"
            except ImageError as e:
                yield kind, e.error_class
                kept = decode_image(damaged, accept_damaged=True) if e.error_class == "DamagedImage" else None
                assert kept is None or (kept.is_damaged and kept.rgb.shape == truth.shape)


def check(colours: str, options: dict[str, object], places: int) -> None:
    """No damage is silent, but for the kinds in UNSEEN, of which most is seen."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in DAMAGE}
    for kind, outcome in outcomes(colours, options, places):
        counts[kind][outcome] += 1
    silent = {kind: count["silent"] for kind, count in counts.items() if count["silent"]}
    assert silent.keys() <= set(UNSEEN), counts
    of_unseen = sum((counts[kind] for kind in UNSEEN), Counter[str]())
    assert of_unseen["silent"] < of_unseen.total() / 3, of_unseen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_no_jpeg_damage_is_silent(mode: str, colours: str) -> None:
    """Sectors of zeros, lost bytes, cut files and files that run into each other, all over a JPEG."""
    check(colours, MODES[mode], places=4)


@pytest.mark.chaos
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_no_jpeg_damage_is_silent_at_many_places(mode: str, colours: str) -> None:
    check(colours, MODES[mode], places=60)


@pytest.mark.chaos
def test_jpeg_flipped_bits_are_counted(figure: Callable[[str, str], None]) -> None:
    """One flipped bit often decodes without a warning: the figure says how often that is visible."""
    draw, counts = random.Random(0), Counter[str]()
    for mode, options in MODES.items():
        data = file_of(photograph(300, 200), "RGB", options)
        truth = decode_image(data).rgb
        start, end = picture_data(data)
        for _ in range(200):
            try:
                picture = decode_image(flipped(data, draw.randrange(start, end), draw.randrange(8)))
                outcome = "silent" if differs(picture.rgb, truth) else "not visible"
            except ImageError:
                outcome = "seen"
            counts[outcome] += 1
            counts[f"{outcome}, {mode}"] += 1
    text = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    figure("one flipped bit in a JPEG of 300×200, 200 of each mode", text)
    assert counts["seen"] > counts["silent"]


def test_jpeg_damaged_header_tables_are_seen() -> None:
    """libjpeg decodes with quantization steps of zero, and with Huffman tables that name one symbol several times."""
    data = file_of(photograph(96, 64), "RGB", {})
    steps = data.index(b"\xff\xdb")
    assert error_class(zeroed(data, steps + 20, 30)) == "DamagedImage"
    table = data.index(b"\xff\xc4\0\xb5")
    assert error_class(zeroed(data, table + 100, 40)) == "DamagedImage"


def test_jpeg_thumbnail_is_not_taken_for_its_picture() -> None:
    """Where bytes of the metadata are lost, the first picture that is found is the thumbnail in it."""
    thumbnail = saved(Image.fromarray(photograph(16, 12)), "JPEG")
    data = saved(Image.fromarray(photograph(96, 64)), "JPEG")
    exif = b"\xff\xe1" + (len(thumbnail) + 18).to_bytes(2, "big") + b"Exif\0\0II*\0\x08\0\0\0\0\0" + thumbnail + b"\0\0"
    whole = data[:20] + exif + data[20:]
    assert decode_image(whole).rgb.shape == (64, 96, 3)
    for lost in range(4, 60):
        # Where the loss ends with a marker, what is left is a whole JPEG of the thumbnail, and other bytes behind it.
        if whole[20 + lost] != 0xFF:
            assert error_class(whole[:20] + whole[20 + lost :]) in ("DamagedImage", "BrokenImage")


def test_progressive_jpeg_without_all_scans_is_damaged() -> None:
    """A file that is cut between two scans is a whole file to libjpeg, and a blurred picture."""
    data = file_of(photograph(96, 64), "RGB", MODES["progressive"])
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 8
    for at in scans[1:]:
        # Tables may stand before the header of a scan.
        place = data.rfind(b"\xff\xc4", 0, at) if data[at - 2 : at] != b"\xff\xda" else at
        assert error_class(data[: min(place, at)] + EOI) == "DamagedImage"


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_progressive", "three_scans", "sampled_3x1", "sampled_4x2"])
def test_rare_jpeg_with_missing_data_is_damaged(name: str) -> None:
    """Kinds for which libjpeg has no warning, or no reader passes the warning on."""
    data = (DATA / f"{name}.jpg").read_bytes()
    start, end = picture_data(data)
    for share in (0.3, 0.6, 0.9):
        for ending in (b"", EOI):
            classes = ("DamagedImage", "BrokenImage") if "progressive" in name else ("DamagedImage",)
            assert error_class(data[: start + int((end - start) * share)] + ending) in classes


def test_deep_jpeg_with_missing_data_is_damaged() -> None:
    data = imagecodecs.jpeg8_encode(photograph(96, 64).astype(np.uint16) * 16, 90, bitspersample=12)
    start, end = picture_data(data)
    for share in (0.3, 0.6, 0.9):
        assert error_class(data[: start + int((end - start) * share)] + EOI) == "DamagedImage"


def test_damaged_jpeg_says_what_to_do() -> None:
    data = file_of(photograph(96, 64), "RGB", {})
    with pytest.raises(ImageError, match=r"libjpeg: Corrupt JPEG data: premature end .* missing\. Restore the file\.$"):
        decode_image(data[: len(data) * 2 // 3] + EOI)
