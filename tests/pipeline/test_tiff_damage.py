"""TIFFs that are truncated, damaged or hostile."""

import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from imagemill.pipeline.images.decode import DecodedImage, decode_image, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers import tiff_page
from tests.support.sample_images import decode_or_error, noise, scene
from tests.support.tiffs import LONG, SHORT, decode_error, encode_tiff, encode_with_tifffile

H, W = 24, 36
RGB, GRAY = scene(H, W), scene(H, W)[..., :1]

CODECS = (None, "lzw", "deflate", "packbits", "lzma", "zstd", "lerc", "jpeg", "webp", "jpeg2000", "png")


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("layout", [{"rowsperstrip": 64}, {"rowsperstrip": 16}, {"tile": (32, 32)}], ids=str)
def test_tiff_truncated_segment_is_broken(compression: str | None, layout: dict[str, Any]) -> None:
    """Decoders return what they can, and the rest of the image would be gray."""
    data = encode_with_tifffile(noise(64, 64, 3), photometric="rgb", compression=compression, **layout)
    decode_image(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets, counts = file.pages[0].dataoffsets, file.pages[0].databytecounts
        tag = file.pages[0].tags[325 if "tile" in layout else 279]
        kind = "H" if tag.dtype == SHORT else "I"
    for n in (0, len(offsets) - 1):
        for fraction in (0.1, 0.5, 0.9):
            truncated = bytearray(data)
            at = tag.valueoffset + n * struct.calcsize(kind)
            struct.pack_into(f"<{kind}", truncated, at, max(1, int(counts[n] * fraction)))
            assert decode_error(bytes(truncated))[0] == "BrokenImage"
    # tifffile writes everything else before the pixels, so that cutting the file cuts only pixels.
    assert offsets[-1] + counts[-1] <= len(data)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("options", [0, 1, 4, 5])
def test_tiff_damaged_fax_strip_is_broken(compression: str, options: int) -> None:
    """No fax decoder reports an error, and half of the page would be white."""
    image = Image.fromarray(np.kron(noise(16, 12) > 128, np.ones((6, 5), bool)))
    out = io.BytesIO()
    if compression != "group3" and options:
        pytest.skip("only Group 3 has options")
    image.save(out, "TIFF", compression=compression, tiffinfo={278: image.height, 292: options})
    data = out.getvalue()
    np.testing.assert_array_equal(decode_image(data).rgb[..., 0] > 0, np.asarray(image))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (offset,), (count,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
        tag = file.pages[0].tags[279]
    for size in range(1, count - 6, 29):
        truncated = bytearray(data)
        struct.pack_into("<I" if tag.dtype == LONG else "<H", truncated, tag.valueoffset, size)
        assert decode_error(bytes(truncated))[0] == "BrokenImage"
    if options & 1:
        return
    damaged_count = 0
    for at in range(offset + 2, offset + count - 6, 7):
        damaged_data = bytearray(data)
        damaged_data[at] ^= 0x5A
        try:
            decode_image(bytes(damaged_data))
        except ImageError as e:
            damaged_count += e.error_class == "BrokenImage"
    # Some changed bytes are valid codes of a different image.
    assert damaged_count > 0.9 * (count - 8) / 7


@pytest.mark.parametrize(
    "tags",
    [
        {322: (LONG, (65_536,)), 323: (LONG, (65_536,)), 324: (LONG, (8,)), 325: (LONG, (100,))},
        {322: (LONG, (2**31,)), 323: (LONG, (2**31,)), 324: (LONG, (8,)), 325: (LONG, (100,))},
        {322: (LONG, (1,)), 323: (LONG, (1,)), 324: (LONG, (8,) * 864), 325: (LONG, (100,) * 864)},
        {279: (LONG, (2**32 - 1,))},
        {278: (LONG, (0,))},
        {277: (SHORT, (65_535,))},
        {258: (SHORT, (65_535,))},
        {258: (SHORT, (0,))},
        {256: (LONG, (0,))},
        {256: (11, (float("nan"),))},
        {530: (SHORT, (0, 0)), 262: (SHORT, (6,))},
        {529: (11, (float("inf"),) * 3), 530: (SHORT, (1, 1)), 262: (SHORT, (6,))},
        {317: (SHORT, (99,)), 259: (SHORT, (8,))},
    ],
    ids=str,
)
def test_tiff_arbitrary_tags_raise_image_errors(tags: dict[int, tuple[int, tuple[int, ...]]]) -> None:
    tracemalloc.start()
    decoded = decode_or_error(encode_tiff(noise(H, W, 3), 8, 2, tags=tags))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    assert not isinstance(decoded, DecodedImage) or decoded.rgb.shape == (H, W, 3)


def test_tiff_too_many_strips_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_page, "MAX_SEGMENTS", 10)
    assert "24 strips or tiles" in decode_error(encode_tiff(RGB, 8, 2, rows=1))[1]


def test_tiff_too_many_pixels_are_rejected_early() -> None:
    data = encode_tiff(RGB, 8, 2, tags={256: (LONG, (60_000,)), 257: (LONG, (60_000,))})
    assert decode_error(data)[0] == "TooManyPixels"
    assert read_pixel_count(data) == 60_000**2
