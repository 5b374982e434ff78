"""JPEGs of every kind that writers offer are decoded exactly, or rejected with their kind."""

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
from tests.support.jpegs import EOI, crop_photo, find_image_data, iterate_variants
from tests.support.sample_images import encode_as

DATA = Path(__file__).parent / "data"
CROP = (96, 64)


def decode_with_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def build_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def first_offset(data: bytes, marker: int) -> int:
    return data.index(bytes((0xFF, marker)))


def remove_segments(data: bytes, marker: int) -> bytes:
    """Remove the segments with a marker."""
    at = 2
    while data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == marker:
            data = data[:at] + data[at + size :]
        else:
            at += size
    return data


@pytest.mark.parametrize("size", [CROP, pytest.param((300, 200), marks=pytest.mark.chaos), (1, 1), (17, 33)])
def test_jpeg_of_every_writer_is_decoded(size: tuple[int, int]) -> None:
    """103 combinations of colours, sampling, progressive, restarts, tables, depth, lossless."""
    count = 0
    for name, data, true_samples in iterate_variants(crop_photo(*size)):
        decoded = decode_image(data)
        count += 1
        assert decoded.rgb.shape == true_samples.shape, name
        assert decoded.is_gray == ("gray" in name), name
        assert decoded.bit_depth == (12 if "12 bits" in name else 16 if "16 bits" in name else 8), name
        assert not decoded.is_damaged, name
        if "lossless" in name:
            np.testing.assert_array_equal(decoded.rgb, true_samples, name)
        elif size[0] > 50:
            assert psnr_db(decoded.rgb, true_samples) > 27, name
        if decoded.bit_depth == 8:
            np.testing.assert_array_equal(decoded.rgb, decode_with_pillow(data), name)
    assert count > 100


@pytest.mark.parametrize("path", sorted(DATA.glob("*.jpg")), ids=lambda path: path.stem)
def test_jpeg_of_rare_kind_is_decoded(path: Path) -> None:
    """Files of cjpeg: arithmetic coding, one scan per component, sampling unknown to simplejpeg."""
    data = path.read_bytes()
    decoded = decode_image(data)
    assert psnr_db(decoded.rgb, crop_photo(*CROP)) > 28
    np.testing.assert_array_equal(decoded.rgb, decode_with_pillow(data))


def encode_photo(**options: object) -> bytes:
    return encode_as(Image.fromarray(crop_photo(*CROP)), "JPEG", quality=90, **options)


def set_scan_parameters(data: bytes) -> bytes:
    """Set scan parameters like some Samsung phones."""
    start, _ = find_image_data(data)
    return data[: start - 3] + bytes(3) + data[start:]


def move_height_to_dnl(data: bytes) -> bytes:
    """Move the height from the frame header into a DNL segment after the image data."""
    frame = first_offset(data, 0xC0)
    return data[: frame + 5] + b"\0\0" + data[frame + 7 : -2] + build_segment(0xDC, struct.pack(">H", CROP[1])) + EOI


def insert_before_tables(data: bytes, *parts: bytes) -> bytes:
    """Insert bytes before the quantization tables."""
    offset = first_offset(data, 0xDB)
    return data[:offset] + b"".join(parts) + data[offset:]


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "no end marker": lambda d: d[:-2],
    "bytes after the end marker": lambda d: d + b"SEFT" + bytes(range(256)),
    "another JPEG after the end marker": lambda d: d + encode_photo(),
    "zeros before the end marker": lambda d: d[:-2] + bytes(23) + EOI,
    "fill bytes before the end marker": lambda d: d[:-2] + b"\xff" * 7 + EOI,
    "scan parameters of another kind": set_scan_parameters,
    "unknown version of JFIF": lambda d: d[:11] + b"\2\7" + d[13:],
    "unknown colour transform": lambda d: insert_before_tables(
        remove_segments(d, 0xE0), build_segment(0xEE, b"Adobe\0\x64\0\0\0\0\7")
    ),
    "foreign bytes between segments": lambda d: insert_before_tables(d, b"x" * 600),
    "fill bytes before a marker": lambda d: insert_before_tables(d, b"\xff" * 9),
    "empty segments": lambda d: insert_before_tables(
        d, *(build_segment(marker, b"") for marker in (*range(0xE0, 0xF0), 0xFE))
    ),
    "a segment of odd length": lambda d: insert_before_tables(
        d, build_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\5abc")
    ),
    "a segment of length 0": lambda d: insert_before_tables(d, b"\xff\xe5\0\0"),
    "a JFIF segment that is empty": lambda d: d[:2] + build_segment(0xE0, b"") + remove_segments(d[:], 0xE0)[2:],
    "a JFIF segment that is too short": lambda d: d[:2] + build_segment(0xE0, b"JFIF\0") + remove_segments(d[:], 0xE0)[2:],
    "an Adobe segment that is too short": lambda d: insert_before_tables(d, build_segment(0xEE, b"Adobe")),
    "a profile segment that is too short": lambda d: insert_before_tables(d, build_segment(0xE2, b"ICC_PROFILE\0\1")),
    "an MPF index that is too short": lambda d: insert_before_tables(d, build_segment(0xE2, b"MPF\0II*\0")),
    "no Huffman tables, as in Motion JPEG": lambda d: remove_segments(d, 0xC4),
    "no JFIF": lambda d: remove_segments(d, 0xE0),
    "height after the image data": move_height_to_dnl,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_jpeg_with_harmless_oddity_is_intact(name: str) -> None:
    """libjpeg or Pillow warns about most of them, but all pixels are intact."""
    data = HARMLESS[name](encode_photo())
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.rgb, decode_with_pillow(encode_photo()))
    assert not decoded.is_damaged
    assert read_pixel_count(data) == CROP[0] * CROP[1]


def set_two_components(data: bytes) -> bytes:
    """Change the frame header to two components."""
    frame = first_offset(data, 0xC0)
    return (
        data[:frame]
        + b"\xff\xc0\0\x0e"
        + data[frame + 4 : frame + 9]
        + b"\2"
        + data[frame + 10 : frame + 16]
        + data[frame + 19 :]
    )


UNSUPPORTED = {
    "JPEG-LS": imagecodecs.jpegls_encode(crop_photo(*CROP)),
    "hierarchical JPEG": encode_photo().replace(b"\xff\xc0", b"\xff\xc5"),
    "lossless JPEG with arithmetic coding": encode_photo().replace(b"\xff\xc0", b"\xff\xcb"),
    "JPEG with 2 components": set_two_components(encode_photo()),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_jpeg_of_unsupported_kind_is_named(name: str) -> None:
    with pytest.raises(ImageError, match=f"{name} is not supported. Convert the file") as error_info:
        decode_image(UNSUPPORTED[name])
    assert error_info.value.error_class == "UnsupportedFormat"


@pytest.mark.parametrize("marker", [True, False])
def test_jpeg_cmyk_is_decoded_as_in_browsers(marker: bool) -> None:
    """255 means no ink, with and without an Adobe marker."""
    cmyk = Image.fromarray(crop_photo(*CROP)).convert("CMYK")
    data = encode_as(cmyk, "JPEG", quality=95)
    decoded = decode_image(data if marker else remove_segments(data, 0xEE))
    assert psnr_db(decoded.rgb, np.asarray(cmyk.convert("RGB"))) > 30


def test_jpeg_metadata_in_several_segments_is_joined() -> None:
    """A profile in three segments out of order; a profile that lacks one is unreadable."""
    profile = bytes(range(256)) * 2
    parts = [build_segment(0xE2, b"ICC_PROFILE\0" + bytes((n + 1, 3)) + profile[200 * n : 200 * n + 200]) for n in range(3)]
    assert decode_image(insert_before_tables(encode_photo(), parts[2], parts[0], parts[1])).icc == "unreadable"
    assert decode_image(insert_before_tables(encode_photo(), parts[2], parts[0])).icc == "unreadable"
    assert decode_image(insert_before_tables(encode_photo(), parts[1], parts[1])).icc == "unreadable"
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode_photo(exif=exif)).exif_orientation == 6
    # Pillow cannot open JPEGs of 12 bits.
    deep_samples = crop_photo(*CROP).astype(np.uint16) * 16
    rotated = insert_before_tables(
        imagecodecs.jpeg8_encode(deep_samples, 95, bitspersample=12), build_segment(0xE1, exif.tobytes())
    )
    assert decode_image(rotated).rgb.shape == (CROP[0], CROP[1], 3)
