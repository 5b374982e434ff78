"""JPEG of every kind that writers offer is read as it was meant, or its kind is named."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from tests.support.jpegs import EOI, photograph, picture_data, written
from tests.support.sample_images import saved

DATA = Path(__file__).parent / "data"
CROP = (96, 64)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def first(data: bytes, marker: int) -> int:
    return data.index(bytes((0xFF, marker)))


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without the segments of a kind."""
    at = 2
    while data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == marker:
            data = data[:at] + data[at + size :]
        else:
            at += size
    return data


@pytest.mark.parametrize("size", [CROP, pytest.param((300, 200), marks=pytest.mark.chaos), (1, 1), (17, 33)])
def test_jpeg_of_every_writer_is_its_picture(size: tuple[int, int]) -> None:
    """103 combinations: colours, sampling, progressive, restart intervals, tables, 8 to 16 bits, lossless."""
    count = 0
    for name, data, truth in written(photograph(*size)):
        picture = decode_image(data)
        count += 1
        assert picture.rgb.shape == truth.shape, name
        assert picture.is_gray == ("gray" in name), name
        assert picture.bit_depth == (12 if "12 bits" in name else 16 if "16 bits" in name else 8), name
        assert not picture.is_damaged, name
        if "lossless" in name:
            np.testing.assert_array_equal(picture.rgb, truth, name)
        elif size[0] > 50:
            assert psnr_db(picture.rgb, truth) > 27, name
        if picture.bit_depth == 8:
            np.testing.assert_array_equal(picture.rgb, by_pillow(data), name)
    assert count > 100


@pytest.mark.parametrize("path", sorted(DATA.glob("*.jpg")), ids=lambda path: path.stem)
def test_jpeg_of_a_rare_kind_is_its_picture(path: Path) -> None:
    """Files of cjpeg: arithmetic coding, a scan for each component, sampling factors that simplejpeg does not know."""
    data = path.read_bytes()
    picture = decode_image(data)
    assert psnr_db(picture.rgb, photograph(*CROP)) > 28
    np.testing.assert_array_equal(picture.rgb, by_pillow(data))


def photo_jpeg(**options: object) -> bytes:
    return saved(Image.fromarray(photograph(*CROP)), "JPEG", quality=90, **options)


def with_scan_parameters(data: bytes) -> bytes:
    """As some telephones of Samsung write it."""
    start, _ = picture_data(data)
    return data[: start - 3] + bytes(3) + data[start:]


def without_height(data: bytes) -> bytes:
    """The height is known when the picture ends, and stands in a DNL segment behind it."""
    frame = first(data, 0xC0)
    return data[: frame + 5] + b"\0\0" + data[frame + 7 : -2] + segment(0xDC, struct.pack(">H", CROP[1])) + EOI


def inserted(data: bytes, *parts: bytes) -> bytes:
    """A JPEG with bytes before its quantization tables."""
    place = first(data, 0xDB)
    return data[:place] + b"".join(parts) + data[place:]


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "no end mark": lambda d: d[:-2],
    "bytes behind the end mark": lambda d: d + b"SEFT" + bytes(range(256)),
    "another JPEG behind the end mark": lambda d: d + photo_jpeg(),
    "zeros before the end mark": lambda d: d[:-2] + bytes(23) + EOI,
    "fill bytes before the end mark": lambda d: d[:-2] + b"\xff" * 7 + EOI,
    "scan parameters of another kind": with_scan_parameters,
    "unknown version of JFIF": lambda d: d[:11] + b"\2\7" + d[13:],
    "unknown colour transform": lambda d: inserted(without(d, 0xE0), segment(0xEE, b"Adobe\0\x64\0\0\0\0\7")),
    "foreign bytes between segments": lambda d: inserted(d, b"x" * 600),
    "fill bytes before a marker": lambda d: inserted(d, b"\xff" * 9),
    "empty segments": lambda d: inserted(d, *(segment(marker, b"") for marker in (*range(0xE0, 0xF0), 0xFE))),
    "a segment of odd length": lambda d: inserted(d, segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\5abc")),
    "a segment of length 0": lambda d: inserted(d, b"\xff\xe5\0\0"),
    "a JFIF segment that is empty": lambda d: d[:2] + segment(0xE0, b"") + without(d[:], 0xE0)[2:],
    "a JFIF segment that is short": lambda d: d[:2] + segment(0xE0, b"JFIF\0") + without(d[:], 0xE0)[2:],
    "an Adobe segment that is short": lambda d: inserted(d, segment(0xEE, b"Adobe")),
    "a profile segment that is short": lambda d: inserted(d, segment(0xE2, b"ICC_PROFILE\0\1")),
    "an index of pictures that is short": lambda d: inserted(d, segment(0xE2, b"MPF\0II*\0")),
    "no Huffman tables, as in Motion JPEG": lambda d: without(d, 0xC4),
    "no JFIF": lambda d: without(d, 0xE0),
    "the height behind the picture": without_height,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_jpeg_with_a_harmless_oddity_is_whole(name: str) -> None:
    """libjpeg or Pillow warns of most of them, and all pixels are there."""
    data = HARMLESS[name](photo_jpeg())
    picture = decode_image(data)
    np.testing.assert_array_equal(picture.rgb, by_pillow(photo_jpeg()))
    assert not picture.is_damaged
    assert read_pixel_count(data) == CROP[0] * CROP[1]


def with_two_components(data: bytes) -> bytes:
    """A JPEG whose frame header says so."""
    frame = first(data, 0xC0)
    return (
        data[:frame]
        + b"\xff\xc0\0\x0e"
        + data[frame + 4 : frame + 9]
        + b"\2"
        + data[frame + 10 : frame + 16]
        + data[frame + 19 :]
    )


UNSUPPORTED = {
    "JPEG-LS": imagecodecs.jpegls_encode(photograph(*CROP)),
    "hierarchical JPEG": photo_jpeg().replace(b"\xff\xc0", b"\xff\xc5"),
    "lossless JPEG with arithmetic coding": photo_jpeg().replace(b"\xff\xc0", b"\xff\xcb"),
    "JPEG with 2 components": with_two_components(photo_jpeg()),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_jpeg_of_an_unsupported_kind_is_named(name: str) -> None:
    with pytest.raises(ImageError, match=f"{name} is not supported. Convert the file") as caught:
        decode_image(UNSUPPORTED[name])
    assert caught.value.error_class == "UnsupportedFormat"


@pytest.mark.parametrize("marker", [True, False])
def test_cmyk_jpeg_is_taken_as_browsers_take_it(marker: bool) -> None:
    """255 is no ink, with a marker of Adobe and without one."""
    cmyk = Image.fromarray(photograph(*CROP)).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=95)
    picture = decode_image(data if marker else without(data, 0xEE))
    assert psnr_db(picture.rgb, np.asarray(cmyk.convert("RGB"))) > 30


def test_jpeg_metadata_in_several_segments_is_joined() -> None:
    """A profile in three segments, out of order; one that lacks a segment is unreadable."""
    profile = bytes(range(256)) * 2
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes((n + 1, 3)) + profile[200 * n : 200 * n + 200]) for n in range(3)]
    assert decode_image(inserted(photo_jpeg(), parts[2], parts[0], parts[1])).icc == "unreadable"
    assert decode_image(inserted(photo_jpeg(), parts[2], parts[0])).icc == "unreadable"
    assert decode_image(inserted(photo_jpeg(), parts[1], parts[1])).icc == "unreadable"
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(photo_jpeg(exif=exif)).exif_orientation == 6
    # 12 bits, which Pillow does not open.
    deep = photograph(*CROP).astype(np.uint16) * 16
    turned = inserted(imagecodecs.jpeg8_encode(deep, 95, bitspersample=12), segment(0xE1, exif.tobytes()))
    assert decode_image(turned).rgb.shape == (CROP[0], CROP[1], 3)
