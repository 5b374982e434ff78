"""Camera raw: colours, orientation, metadata, truncated files, and limits before decoding."""

import sys

import numpy as np
import pytest

from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.orientation import TO_STORED_ORIENTATION
from imagemill.pipeline.images.readers.signatures import identify_format
from tests.support.camera_raw import dng_file
from tests.support.heifs import corners, quadrants
from tests.support.sample_images import decode_error_class

H, W = 64, 96
STORED = np.where(quadrants(H, W) > 100, 0.9, 0.2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_raw_is_developed_upright(orientation: int) -> None:
    decoded = decode_image(dng_file(STORED, orientation))
    assert (decoded.format, decoded.bit_depth, decoded.exif_orientation) == ("RAW", 14, orientation)
    assert (decoded.orig_width, decoded.orig_height) == (W, H)
    stored = TO_STORED_ORIENTATION[orientation](decoded.rgb)
    is_bright = corners(quadrants(H, W)) > 100
    # The camera's white balance makes the three channels equally bright again.
    assert corners(stored)[is_bright].min() > 230
    assert corners(stored)[~is_bright].max() < 150
    assert decoded.metadata.exif is not None
    assert decoded.metadata.exif.main[271][2].startswith(b"Imagemill")


def test_camera_raw_white_balance_is_that_of_the_camera() -> None:
    gray = decode_image(dng_file(np.full((H, W, 3), 0.4))).rgb[16:-16, 16:-16].astype(int)
    assert np.abs(gray - gray.mean(-1, keepdims=True)).max() <= 2


def test_camera_raw_truncated_is_broken() -> None:
    data = dng_file(STORED)
    for length in (200, 1000, len(data) // 2, len(data) - 1):
        assert decode_error_class(data[:length]) == "BrokenImage", length


def test_camera_raw_size_is_checked_before_decoding() -> None:
    """Developing takes more memory than other formats, which the pixel budget of a worker takes into account."""
    data = dng_file(STORED)
    assert read_pixel_count(data) == 2 * H * W
    assert decode_error_class(data, H * W - 1) == "TooManyPixels"
    assert decode_image(data, H * W).rgb.shape == (H, W, 3)


def test_camera_raw_without_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match=r"pip install 'imagemill\[raw\]'") as raised:
        decode_image(dng_file(STORED))
    assert raised.value.error_class == "MissingExtra"


@pytest.mark.parametrize(
    "head",
    [
        b"II*\0\x10\0\0\0CR\2\0",
        b"FUJIFILMCCD-RAW 0201",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        b"IIRO\x08\0\0\0",
        b"IIU\0\x18\0\0\0",
    ],
)
def test_camera_raw_of_any_camera_is_recognised(head: bytes) -> None:
    assert identify_format(head + bytes(500)) == "RAW"
    assert decode_error_class(head + bytes(500)) in ("BrokenImage", "UnsupportedFormat")
