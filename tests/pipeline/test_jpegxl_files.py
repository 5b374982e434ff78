"""JPEG XL: lossless and lossy files of every depth, packed JPEGs, colours, metadata, damage, and limits before decoding."""

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pylibjxl
import pytest
from PIL import Image

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image, decode_stored_samples, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.jpegxl_header import parse_header
from tests.support.camera import XMP
from tests.support.exact_writers import box
from tests.support.icc import DISPLAY_P3, rgb_profile
from tests.support.sample_images import decode_error_class, encode_as, noise, scene

H, W = 24, 36
RGB = scene(H, W)
LINEAR_12_BITS = Path(__file__).with_name("data") / "profile_lossy.jxl"
"""A photo of `quadrants(64, 96)` with a profile of Adobe RGB: `cjxl -q 95`, version 0.7.0."""
SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ")


def wrap(codestream: bytes, *boxes: bytes, step: int | None = None) -> bytes:
    """Return a file with boxes, in which the codestream is whole or in parts of `step` bytes."""
    if not step:
        return SIGNATURE + b"".join(boxes) + box(b"jxlc", codestream)
    pieces = [codestream[at : at + step] for at in range(0, len(codestream), step)]
    numbers = (n | (1 << 31 if n == len(pieces) - 1 else 0) for n in range(len(pieces)))
    numbered = zip(numbers, pieces, strict=True)
    return SIGNATURE + b"".join(boxes) + b"".join(box(b"jxlp", n.to_bytes(4, "big") + piece) for n, piece in numbered)


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Encode linear light in 0..1 with the sRGB curve: 0..255."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpegxl_lossless_is_decoded_exactly(bits: int, channels: int) -> None:
    samples = noise(H, W, channels).astype(np.uint16) * 257 >> 16 - bits
    stored = samples.astype(np.uint8 if bits == 8 else np.uint16)
    data = imagecodecs.jpegxl_encode(
        stored[..., 0] if channels == 1 else stored,
        lossless=True,
        bitspersample=bits,
        photometric="gray" if channels == 1 else None,
    )
    colours = samples[..., 0] if channels < 3 else samples[..., :3]
    samples_max = 255 if bits == 8 else 65535
    np.testing.assert_array_equal(decode_stored_samples(data), np.round(colours * (samples_max / ((1 << bits) - 1))))
    decoded = decode_image(data)
    assert read_pixel_count(data) == W * H
    assert (decoded.is_gray, decoded.has_alpha, decoded.bit_depth) == (channels < 3, channels in (2, 4), bits)
    if channels in (2, 4):
        np.testing.assert_array_equal(decoded.alpha, np.round(samples[..., -1] * (255 / ((1 << bits) - 1))))
    # imagecodecs declares samples of more than 8 bits as linear light.
    assert decoded.icc == ("none" if bits == 8 else "converted")
    srgb = colours if bits == 8 else encode_srgb(colours / ((1 << bits) - 1))
    visible = decoded.alpha > 0 if decoded.alpha is not None else np.ones((H, W), bool)
    rgb = np.broadcast_to(srgb[..., None] if channels < 3 else srgb, (H, W, 3))
    assert np.abs(decoded.rgb[visible] - rgb[visible].astype(float)).max() <= (0 if bits == 8 else 1)


def test_jpegxl_lossy_and_animation_are_decoded() -> None:
    """Of an animation the first frame is decoded, and the other frames cost no memory."""
    lossy = decode_image(imagecodecs.jpegxl_encode(RGB, level=98))
    assert np.abs(lossy.rgb.astype(int) - RGB).mean() < 3
    assert lossy.icc == "none"
    frames = np.stack([RGB, RGB[::-1], RGB[:, ::-1]])
    np.testing.assert_array_equal(decode_image(imagecodecs.jpegxl_encode(frames, lossless=True)).rgb, RGB)


def test_jpegxl_floats_are_linear_light() -> None:
    """Samples above 1 and below 0 are clipped."""
    light = np.linspace(-0.5, 1.5, H * W * 3, dtype=np.float32).reshape(H, W, 3)
    decoded = decode_image(imagecodecs.jpegxl_encode(light, lossless=True))
    assert np.abs(decoded.rgb - encode_srgb(np.clip(light, 0, 1))).max() <= 1
    assert (decoded.bit_depth, decoded.icc) == (32, "converted")


def test_jpegxl_of_a_jpeg_is_read_as_this_jpeg() -> None:
    """The orientation, the profile and all metadata of the JPEG count."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    options = {"quality": 95, "exif": exif.tobytes(), "icc_profile": rgb_profile(DISPLAY_P3), "comment": b"by Ann"}
    for image in (Image.fromarray(RGB), Image.fromarray(RGB).convert("L")):
        options["icc_profile"] = rgb_profile(DISPLAY_P3) if image.mode == "RGB" else None
        jpeg = encode_as(image, "JPEG", **options)
        decoded = decode_image(imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True))
        expected = decode_image(jpeg)
        np.testing.assert_array_equal(decoded.rgb, expected.rgb)
        assert (decoded.format, decoded.exif_orientation, decoded.icc) == ("JPEGXL", 6, expected.icc)
        assert decoded.metadata == expected.metadata
        assert decoded.metadata.text == {"Comment": "by Ann"}


def test_jpegxl_profile_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of a lossless file needs a library, without which colours would be wrong."""
    profile = rgb_profile(DISPLAY_P3)
    data = pylibjxl.encode(RGB, lossless=True, icc=profile)
    expected = decode_image(encode_as(Image.fromarray(RGB), "PNG", icc_profile=profile))
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.rgb, expected.rgb)
    assert decoded.icc == "converted"
    monkeypatch.setitem(sys.modules, "pylibjxl", None)
    with pytest.raises(ImageError, match=r"pip install 'imagemill\[jxl\]'") as raised:
        decode_image(data)
    assert raised.value.error_class == "MissingExtra"
    assert decode_image(imagecodecs.jpegxl_encode(RGB, lossless=True)).icc == "none"


def test_jpegxl_lossy_with_profile_is_decoded_in_linear_light() -> None:
    """libjxl converts such a file to linear sRGB, for which 8 bits are too few."""
    data = LINEAR_12_BITS.read_bytes()
    header = parse_header(data)
    assert (header.is_xyb, header.has_profile, header.bits) == (True, True, 8)
    decoded = decode_image(data)
    # The colours are sRGB also if a run keeps the colours of files, because their profile no longer applies.
    np.testing.assert_array_equal(decode_image(data, config=ImageConfig(icc="keep")).rgb, decoded.rgb)
    assert (decoded.icc, decoded.bit_depth) == ("none", 8)
    by_profile = [[(232, 57, 46), (0, 172, 72)], [(63, 79, 195), (215, 201, 53)]]
    middle = decoded.rgb[16::32, 24::48]
    assert np.abs(middle.astype(int) - by_profile).max() <= 3
    np.testing.assert_array_equal(decode_image(wrap(data)).rgb, decoded.rgb)
    for step in (2, 3, 7, len(data) // 3):
        np.testing.assert_array_equal(decode_image(wrap(data, step=step)).rgb, decoded.rgb)


def test_jpegxl_metadata_is_read_from_boxes() -> None:
    """Metadata may be compressed. The orientation in EXIF is ignored."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    codestream = imagecodecs.jpegxl_encode(RGB, lossless=True)
    content = bytes(4) + exif.tobytes()[6:]
    plain = (box(b"Exif", content), box(b"xml ", XMP))
    packed = (
        box(b"brob", b"Exif" + imagecodecs.brotli_encode(content)),
        box(b"brob", b"xml " + imagecodecs.brotli_encode(XMP)),
    )
    for boxes in (plain, packed):
        decoded = decode_image(wrap(codestream, *boxes))
        assert decoded.exif_orientation == 1
        assert decoded.metadata.exif is not None
        assert decoded.metadata.xmp is not None
        np.testing.assert_array_equal(decoded.rgb, RGB)
    bomb = box(b"brob", b"xml " + imagecodecs.brotli_encode(bytes(50_000_000)))
    assert decode_image(wrap(codestream, bomb)).metadata.xmp is None


def test_jpegxl_truncated_or_zeroed_is_broken() -> None:
    for data in (imagecodecs.jpegxl_encode(noise(H, W, 3), lossless=True), imagecodecs.jpegxl_encode(RGB, level=90)):
        for length in range(3, len(data), max(1, len(data) // 40)):
            assert decode_error_class(data[:length]) == "BrokenImage", length
        for at in range(100, len(data), len(data) // 10):
            assert decode_error_class(data[:at] + bytes(len(data[at : at + 256])) + data[at + 256 :]) == "BrokenImage"


def header_bits(*numbers: tuple[int, int]) -> bytes:
    """Return a codestream that begins with numbers: (value, bits)."""
    total, at = 0, 0
    for value, count in numbers:
        total |= value << at
        at += count
    return b"\xff\x0a" + total.to_bytes(-(-at // 8), "little")


def test_jpegxl_limits_are_checked_before_decoding() -> None:
    # The height, ratio 1:1, and default metadata.
    large = header_bits((0, 1), (3, 2), (99_999, 30), (1, 3), (1, 1)) + bytes(60)
    assert read_pixel_count(large) == 100_000**2
    assert decode_error_class(large) == "TooManyPixels"
    # 8×8 pixels, no extra fields, 8 bits, 2 + 7 default extra channels.
    channels = header_bits((1, 1), (0, 5), (1, 3), (0, 1), (0, 1), (0, 1), (0, 2), (0, 1), (2, 2), (7, 4), (511, 9))
    with pytest.raises(ImageError, match="JPEG XL with 9 extra channels is not supported"):
        decode_image(channels + bytes(60))
