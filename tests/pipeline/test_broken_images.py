"""Broken images and other files are rejected with a reason; no other error is raised."""

import struct
import tracemalloc
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers import READERS
from imagemill.pipeline.images.readers.webp import parse_webp_size
from tests.support.sample_images import (
    FUZZ,
    LIMIT,
    SEEDS,
    chunk,
    decode_error_class,
    decode_or_error,
    encode_as,
    is_valid_outcome,
    noise,
    png,
    scene,
)

_PALETTE = Image.fromarray(scene()).quantize(16)
CHUNKED = [
    encode_as(_PALETTE, "PNG", transparency=3),
    encode_as(_PALETTE, "PNG", transparency=b"\0\x80\xff"),
    encode_as(_PALETTE, "PNG", save_all=True, append_images=[_PALETTE, _PALETTE]),
    encode_as(Image.fromarray(scene()).convert("L"), "PNG", transparency=7),
]


def test_empty_file_is_rejected() -> None:
    assert decode_error_class(b"") == "EmptyFile"


@pytest.mark.parametrize(
    "data",
    [b"hello, I am text called a.jpg", b"\0" * 64, encode_as(Image.fromarray(scene()), "TGA"), b"P7 332\n#XVVERSION"],
    ids=["text", "zeros", "tga", "thumbnail of xv"],
)
def test_unknown_bytes_are_an_unknown_format(data: bytes) -> None:
    assert decode_error_class(data) in ("UnknownFormat", "BrokenImage")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>", "SVG is not supported. Convert the file"),
        (b"<?xml version='1.0'?>\n<!-- drawn by hand -->\n<svg width='9'/>", "SVG is not supported. Convert the file"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "not an image but an XML document"),
        (b"\n<!DOCTYPE HTML><html><title>404</title>", "not an image but an HTML page. Download the image again."),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "not an image but a Git LFS pointer"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "not an image but a macOS resource fork (AppleDouble)"),
        (b"PK\3\4\x14\0", "not an image but a ZIP archive. Unpack it."),
        (b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", "PDF is not"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (encode_as(Image.fromarray(scene()), "EPS"), "PostScript"),
        (encode_as(Image.fromarray(scene()), "PDF"), "PDF is not"),
        (encode_as(Image.fromarray(scene()), "ICO"), "ICO is not"),
        (encode_as(Image.fromarray(scene()), "DDS"), "DDS is not"),
        (encode_as(Image.fromarray(scene()), "QOI"), "QOI is not"),
        (encode_as(Image.fromarray(scene()), "SGI"), "SGI is not"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR"),
        (b"#?RADIANCE\n", "Radiance HDR"),
        (b"SIMPLE  =                    T", "FITS"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"II\xbc\x01\x20\0\0\0", "JPEG XR"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "MP4 or MOV video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "MP4 or MOV video"),
    ],
)
def test_unsupported_file_is_named(data: bytes, message: str) -> None:
    error = decode_or_error(data + bytes(200))
    assert isinstance(error, ImageError)
    assert error.error_class == "UnsupportedFormat"
    assert str(error).startswith(message)


def remove_chunks(data: bytes, *names: bytes) -> bytes:
    """Remove the chunks with these names from a PNG."""
    remaining_chunks, at = data[:8], 8
    while at < len(data):
        end = at + int.from_bytes(data[at : at + 4], "big") + 12
        remaining_chunks, at = remaining_chunks + (b"" if data[at + 4 : at + 8] in names else data[at:end]), end
    return remaining_chunks


@pytest.mark.parametrize("frames", [1, 3])
def test_png_without_palette_is_broken(frames: int) -> None:
    """Pillow raises an AssertionError on such a file."""
    image = Image.fromarray(scene()).quantize(16)
    intact = encode_as(image, "PNG", save_all=frames > 1, append_images=[image] * (frames - 1))
    decode_image(intact)
    reason = decode_or_error(remove_chunks(intact, b"PLTE"))
    assert isinstance(reason, ImageError)
    assert reason.error_class == "BrokenImage"
    assert "palette" in str(reason)


@FUZZ
@given(st.data())
def test_decoder_assertions_become_image_errors(data) -> None:
    """PNGs with palettes and transparency whose chunks are lost, repeated and reordered."""
    intact = data.draw(st.sampled_from(CHUNKED))
    at, chunks = 8, []
    while at < len(intact):
        end = at + int.from_bytes(intact[at : at + 4], "big") + 12
        chunks.append(intact[at:end])
        at = end
    remaining_chunks = data.draw(st.lists(st.sampled_from(chunks[1:]), max_size=8))
    reason = decode_or_error(intact[:8] + chunks[0] + b"".join(remaining_chunks))
    assert "Assertion" not in f"{reason}"


def test_other_pillow_plugins_are_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some plugins start programs (EPS: Ghostscript) or render (WMF); the others are rare."""
    Image.init()

    def fail_if_called(*args: object) -> None:
        pytest.fail("a plug-in of Pillow was called")

    unused_plugins = set(Image.OPEN) - {*READERS, "MPO"}
    assert len(unused_plugins) > 20
    for name in unused_plugins:
        monkeypatch.setitem(Image.OPEN, name, (fail_if_called, fail_if_called))
    file_heads = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\xd7\xcd\xc6\x9a\0\0",
        b"\x01\0\0\0",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        b"8BPS",
    )
    for head in file_heads:
        assert decode_error_class(head + bytes(200)) in ("UnknownFormat", "UnsupportedFormat")


def test_metadata_bombs_are_bounded() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    line = [bytes(3)]
    for name in (b"zTXt", b"iTXt", b"iCCP"):
        keyword = b"a" if name == b"iCCP" else b"XML:com.adobe.xmp"
        extra = chunk(name, keyword + (b"\0\1\0\0\0" if name == b"iTXt" else b"\0\0") + bomb)
        tracemalloc.start()
        decoded = decode_image(png(1, 1, 8, 2, line, extra))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
        assert (decoded.metadata.xmp, decoded.icc) == (None, "unreadable" if name == b"iCCP" else "none")
    # Uncompressed EXIF and profiles are at most as large as the file; large ones are dropped.
    decoded = decode_image(png(1, 1, 8, 2, line, chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0" + bytes(5_000_000))))
    assert decoded.metadata.exif is None
    profile = encode_as(Image.fromarray(scene()), "JPEG", icc_profile=bytes(10_000_000))
    assert decode_image(profile).icc == "unreadable"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_file_is_broken(image_format: str) -> None:
    data = encode_as(Image.fromarray(noise(64, 64, 3)), image_format)
    assert decode_error_class(data[: len(data) * 2 // 3]) in ("BrokenImage", "DamagedImage", "UnknownFormat")


def test_truncated_jpeg_is_damaged() -> None:
    data = encode_as(Image.fromarray(noise(64, 64, 3)), "JPEG")
    assert decode_error_class(data[: len(data) // 2]) == "DamagedImage"
    assert decode_error_class(data[:-40]) == "DamagedImage"
    assert decode_error_class(data[:100]) == "BrokenImage"


def test_pixel_limit_is_checked_on_the_header() -> None:
    # The file has no pixels, so decoding before the check would raise BrokenImage.
    data = png(20_000, 20_000, 8, 2, [])
    assert len(data) < 200
    assert decode_error_class(data) == "TooManyPixels"


@pytest.mark.parametrize("kind", ["VP8 ", "VP8L", "VP8X"])
def test_pixel_limit_of_webp_precedes_pillow(kind: str) -> None:
    # Pillow allocates two canvases of 4 bytes per pixel when it opens the file: 2 GB for 200 bytes.
    size, side = (16_383).to_bytes(2, "little"), (16_382).to_bytes(3, "little")
    body = {
        "VP8 ": b"\0\0\0\x9d\x01\x2a" + size + size,
        "VP8L": b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little"),
        "VP8X": bytes(4) + side + side,
    }[kind]
    data = kind.encode() + struct.pack("<I", len(body)) + body
    data = b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data
    assert decode_error_class(data) == "TooManyPixels"
    assert read_pixel_count(data) == (16_383**2)


def test_parse_webp_size_agrees_with_pillow() -> None:
    image = Image.fromarray(scene(7, 33))
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}):
        assert parse_webp_size(encode_as(image, "WEBP", **options)) == (33, 7)


def test_pixel_limit_is_inclusive() -> None:
    data = encode_as(Image.new("L", (40, 25)), "PNG")
    assert decode_image(data, 1000).rgb.shape == (25, 40, 3)
    assert decode_error_class(data, 999) == "TooManyPixels"


def test_pixel_limit_holds_for_every_format() -> None:
    assert {name: decode_error_class(data, 30) for name, data in SEEDS.items()} == dict.fromkeys(SEEDS, "TooManyPixels")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_range_are_unsupported(mode: str) -> None:
    assert decode_error_class(encode_as(Image.new(mode, (4, 4)), "TIFF")) == "UnsupportedMode"


@given(st.binary(max_size=300), st.sampled_from(["", *SEEDS]))
@FUZZ
def test_random_bytes_raise_image_errors(data: bytes, head: str) -> None:
    assert is_valid_outcome(decode_or_error(SEEDS.get(head, b"")[:30] + data))


@given(
    st.sampled_from(list(SEEDS)), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=12), st.data()
)
@FUZZ
def test_mutated_images_raise_image_errors(name: str, changes: list[tuple[int, int]], data: st.DataObject) -> None:
    mutated_data = bytearray(SEEDS[name])
    for offset, value in changes:
        mutated_data[offset % len(mutated_data)] = value
    if data.draw(st.booleans()):
        del mutated_data[data.draw(st.integers(0, len(mutated_data))) :]
    assert is_valid_outcome(decode_or_error(bytes(mutated_data)))


@given(st.sampled_from(list(SEEDS)), st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), min_size=1, max_size=4))
@FUZZ
def test_mutated_headers_raise_image_errors(name: str, changes: list[tuple[int, int]]) -> None:
    mutated_data = bytearray(SEEDS[name])
    for offset, value in changes:
        mutated_data[offset % len(mutated_data)] = value
    assert is_valid_outcome(decode_or_error(bytes(mutated_data)))


@pytest.mark.parametrize("name", SEEDS)
def test_truncated_images_raise_image_errors(name: str) -> None:
    data = SEEDS[name]
    assert all(is_valid_outcome(decode_or_error(data[:end])) for end in range(0, len(data), 1 + len(data) // 2000))


@pytest.mark.parametrize("name", SEEDS)
def test_every_changed_header_byte_raises_image_errors(name: str) -> None:
    data = SEEDS[name]
    for offset in range(min(120, len(data))):
        for value in (0, 1, 2, 5, 127, 128, 255):
            assert is_valid_outcome(decode_or_error(data[:offset] + bytes([value]) + data[offset + 1 :]))


@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]),
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
)
@FUZZ
@example(b"", b"II*\0\x08\0\0\0", "JPEG")
@example(b"\x01\0\x12\x01\x02\0\x04\0\0\0abc\0", b"II*\0\x08\0\0\0", "JPEG")
def test_broken_exif_raises_image_errors(content: bytes, head: bytes, image_format: str) -> None:
    data = encode_as(Image.fromarray(scene(8, 8)), image_format, exif=b"Exif\0\0" + head + content)
    assert is_valid_outcome(decode_or_error(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_image_with_broken_exif_is_decoded(image_format: str) -> None:
    rgb = scene(8, 8)
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12", b"Exif\0\0not exif"):
        decoded = decode_image(encode_as(Image.fromarray(rgb), image_format, exif=exif), LIMIT)
        assert psnr_db(decoded.rgb, rgb) > 30
        assert decoded.exif_orientation == 1
