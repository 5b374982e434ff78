"""Decoding of every mode and format: upright RGB with 8 bits per sample."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import choose_output_format
from tests.support.sample_images import LIMIT, SEEDS, H, W, encode_as, noise, png, scene, visible_pixels


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_decode_lossless_file_exactly(image_format: str) -> None:
    decoded = decode_image(encode_as(Image.fromarray(scene()), image_format), LIMIT)
    np.testing.assert_array_equal(decoded.rgb, scene())
    assert decoded.rgb.dtype == np.uint8
    facts = (decoded.format, decoded.is_gray, decoded.alpha, decoded.bit_depth, decoded.frames, decoded.exif_orientation)
    assert facts == (image_format, False, None, 8, 1, 1)
    assert (decoded.orig_width, decoded.orig_height) == (W, H)


def test_decode_lossless_webp_exactly() -> None:
    decoded = decode_image(encode_as(Image.fromarray(scene()), "WEBP", lossless=True), LIMIT)
    np.testing.assert_array_equal(decoded.rgb, scene())
    assert decoded.format == "WEBP"


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "YCbCr"])
def test_decode_jpeg_of_each_colour_space(mode: str) -> None:
    image = Image.fromarray(scene())
    decoded = decode_image(encode_as(image.convert(mode), "JPEG", quality=95, subsampling=0), LIMIT)
    expected = np.array(image.convert(mode).convert("RGB"))
    assert psnr_db(decoded.rgb, expected) > 38
    assert decoded.format == "JPEG"
    assert decoded.is_gray == (mode == "L")


def test_decode_palette_with_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    decoded = decode_image(encode_as(image, "PNG", transparency=bytes([255, 0, 128])), LIMIT)
    assert decoded.alpha is not None
    np.testing.assert_array_equal(decoded.rgb[visible_pixels(decoded)], [[255, 0, 0], [0, 0, 255]])
    np.testing.assert_array_equal(decoded.alpha, [[255, 0, 128]])
    assert not decoded.is_gray


def test_decode_gray_to_three_equal_channels() -> None:
    samples = noise(9, 5)
    decoded = decode_image(encode_as(Image.fromarray(samples), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded.rgb, np.repeat(samples[..., None], 3, -1))
    assert decoded.is_gray
    assert decoded.alpha is None


def test_decode_gray_with_alpha() -> None:
    samples, alpha = noise(9, 5), noise(5, 9).T
    image = Image.merge("LA", [Image.fromarray(samples), Image.fromarray(np.ascontiguousarray(alpha))])
    decoded = decode_image(encode_as(image, "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded.rgb[..., 1], samples)
    np.testing.assert_array_equal(decoded.alpha, alpha)
    assert decoded.is_gray


def test_decode_keeps_alpha() -> None:
    rgba = noise(6, 7, 4)
    rgba[0, 0] = (200, 100, 50, 0)
    decoded = decode_image(encode_as(Image.fromarray(rgba), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded.rgb[visible_pixels(decoded)], rgba[visible_pixels(decoded)][:, :3])
    np.testing.assert_array_equal(decoded.alpha, rgba[..., 3])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_decode_scales_16_bit_gray(image_format: str) -> None:
    samples = np.array([[0, 128, 129, 257, 1000, 32768, 65407, 65535]], np.uint16)
    data = b"P5 8 1 65535\n" + samples.astype(">u2").tobytes() if image_format == "PPM" else encode_as(
        Image.fromarray(samples), image_format
    )  # fmt: skip
    decoded = decode_image(data, LIMIT)
    np.testing.assert_array_equal(decoded.rgb[0, :, 0], np.round(samples[0] / 257))
    assert decoded.bit_depth == 16
    assert decoded.is_gray


def test_decode_scales_16_bit_rgb_png() -> None:
    samples = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1100
    decoded = decode_image(png(5, 4, 16, 2, [line.astype(">u2").tobytes() for line in samples]), LIMIT)
    assert decoded.bit_depth == 16
    assert not decoded.is_gray
    assert np.abs(decoded.rgb.astype(float) - samples / 257).max() <= 1


def test_decode_scales_16_bit_rgb_tiff() -> None:
    samples = (np.arange(4 * 5 * 3, dtype="<u2").reshape(4, 5, 3) * 1100).tobytes()
    tags = [
        (256, 3, 1, 5),
        (257, 3, 1, 4),
        (258, 3, 3, 8 + 2 + 9 * 12 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 128),
    ]
    tags += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, len(samples))]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + b"\0" * 4
    data = (head + struct.pack("<HHH", 16, 16, 16)).ljust(128, b"\0") + samples
    decoded = decode_image(data, LIMIT)
    assert np.abs(decoded.rgb.astype(float) - np.frombuffer(samples, "<u2").reshape(4, 5, 3) / 257).max() <= 1
    assert decoded.bit_depth == 16


def test_decode_16_bit_gray_with_alpha() -> None:
    lines = [struct.pack(">HH", 1000 * n, 65535 - 3000 * n) for n in range(6)]
    decoded = decode_image(png(1, 6, 16, 4, lines), LIMIT)
    assert decoded.bit_depth == 16
    assert decoded.is_gray
    assert decoded.alpha is not None
    assert np.abs(decoded.rgb[:, 0, 0].astype(float) - np.arange(6) * 1000 / 257).max() <= 1
    assert np.abs(decoded.alpha[:, 0].astype(float) - (65535 - np.arange(6) * 3000) / 257).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_decode_1_bit_to_black_and_white(image_format: str) -> None:
    bits = noise(9, 13) > 127
    decoded = decode_image(encode_as(Image.fromarray(bits), image_format), LIMIT)
    np.testing.assert_array_equal(decoded.rgb[..., 2], bits * 255)
    assert decoded.is_gray
    assert decoded.bit_depth == 1


def test_decode_first_frame_of_gif() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    decoded = decode_image(encode_as(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMIT)
    np.testing.assert_array_equal(decoded.rgb, np.array(frames[0]))
    assert decoded.frames == 3
    assert decoded.format == "GIF"


@pytest.mark.parametrize("name", ["APNG", "animated WebP", "pages of TIFF"])
def test_decode_first_frame_of_animation(name: str) -> None:
    decoded = decode_image(SEEDS[name], LIMIT)
    assert decoded.frames == 3
    if name != "animated WebP":
        np.testing.assert_array_equal(decoded.rgb, noise(9, 7, 3))


def test_decode_first_image_of_mpo() -> None:
    decoded = decode_image(SEEDS["MPO"], LIMIT)
    assert psnr_db(decoded.rgb, scene()) > 30
    assert decoded.frames == 2
    assert choose_output_format(decoded.format) == "JPEG"


# EXIF 2.32, tag 0x0112: how the upright image becomes the stored one.
STORED_FROM_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


INTEGER_TYPES = [(1, "B"), (3, "H"), (4, "I"), (6, "b"), (7, "B"), (8, "h"), (9, "i")]
"""The integer types of TIFF 6.0, and UNDEFINED, with their format characters of `struct`."""


def oriented(orientation: int, image_format: str, upright: np.ndarray, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored_image = np.ascontiguousarray(STORED_FROM_UPRIGHT[orientation](upright))
    return encode_as(Image.fromarray(stored_image), image_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_decode_turns_image_upright(orientation: int, image_format: str) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    decoded = decode_image(oriented(orientation, image_format, scene(), **options), LIMIT)
    assert decoded.rgb.shape == (H, W, 3)
    if image_format == "JPEG":
        assert psnr_db(decoded.rgb, scene()) > 40
    else:
        np.testing.assert_array_equal(decoded.rgb, scene())


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_decode_records_stored_size_and_orientation(orientation: int, image_format: str) -> None:
    decoded = decode_image(oriented(orientation, image_format, scene()), LIMIT)
    size = (decoded.orig_height, decoded.orig_width)
    assert (size[::-1] if decoded.exif_orientation in (5, 6, 7, 8) else size) == (H, W)
    if image_format != "TIFF":
        assert decoded.exif_orientation == orientation


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_decode_turns_alpha_upright(orientation: int) -> None:
    rgba = noise(H, W, 4)
    decoded = decode_image(oriented(orientation, "PNG", rgba), LIMIT)
    np.testing.assert_array_equal(decoded.rgb[visible_pixels(decoded)], rgba[visible_pixels(decoded)][:, :3])
    np.testing.assert_array_equal(decoded.alpha, rgba[..., 3])


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_decode_turns_16_bit_gray_upright(orientation: int) -> None:
    upright = noise(H, W).astype(np.uint16) * 257
    decoded = decode_image(oriented(orientation, "PNG", upright), LIMIT)
    np.testing.assert_array_equal(decoded.rgb[..., 0], upright // 257)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "code"), INTEGER_TYPES)
def test_orientation_of_every_integer_type_is_read(image_format: str, order: str, kind: int, code: str) -> None:
    """TIFF 6.0 requires a SHORT; some writers use BYTE, LONG and the signed types."""
    value = struct.pack(f"{order}{code}", 6).ljust(4, b"\0")
    byte_order_mark = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    exif = b"Exif\0\0" + byte_order_mark + struct.pack(f"{order}HHHI", 1, 0x0112, kind, 1) + value + bytes(4)
    stored_image = np.ascontiguousarray(STORED_FROM_UPRIGHT[6](scene()))
    decoded = decode_image(encode_as(Image.fromarray(stored_image), image_format, exif=exif), LIMIT)
    assert (decoded.exif_orientation, decoded.rgb.shape) == (6, (H, W, 3))


def test_invalid_orientation_is_ignored() -> None:
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        decoded = decode_image(encode_as(Image.fromarray(scene()), "PNG", exif=exif), LIMIT)
        np.testing.assert_array_equal(decoded.rgb, scene())
