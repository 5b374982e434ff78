"""Pixels of every mode and format as they are decoded: upright RGB."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import choose_output_format
from tests.support.sample_images import LIMIT, SEEDS, H, W, noise, png, saved, scene, shown


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_a_lossless_file_is_decoded_exactly(image_format: str) -> None:
    picture = decode_image(saved(Image.fromarray(scene()), image_format), LIMIT)
    np.testing.assert_array_equal(picture.rgb, scene())
    assert picture.rgb.dtype == np.uint8
    facts = (picture.format, picture.is_gray, picture.alpha, picture.bit_depth, picture.frames, picture.exif_orientation)
    assert facts == (image_format, False, None, 8, 1, 1)
    assert (picture.orig_width, picture.orig_height) == (W, H)


def test_a_lossless_webp_is_decoded_exactly() -> None:
    picture = decode_image(saved(Image.fromarray(scene()), "WEBP", lossless=True), LIMIT)
    np.testing.assert_array_equal(picture.rgb, scene())
    assert picture.format == "WEBP"


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "YCbCr"])
def test_a_jpeg_of_each_colour_space_shows_the_scene(mode: str) -> None:
    image = Image.fromarray(scene())
    picture = decode_image(saved(image.convert(mode), "JPEG", quality=95, subsampling=0), LIMIT)
    expected = np.array(image.convert(mode).convert("RGB"))
    assert psnr_db(picture.rgb, expected) > 38
    assert picture.format == "JPEG"
    assert picture.is_gray == (mode == "L")


def test_a_palette_with_transparency_has_colours_and_alpha() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    picture = decode_image(saved(image, "PNG", transparency=bytes([255, 0, 128])), LIMIT)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.rgb[shown(picture)], [[255, 0, 0], [0, 0, 255]])
    np.testing.assert_array_equal(picture.alpha, [[255, 0, 128]])
    assert not picture.is_gray


def test_a_gray_image_has_three_equal_planes() -> None:
    samples = noise(9, 5)
    picture = decode_image(saved(Image.fromarray(samples), "PNG"), LIMIT)
    np.testing.assert_array_equal(picture.rgb, np.repeat(samples[..., None], 3, -1))
    assert picture.is_gray
    assert picture.alpha is None


def test_gray_with_alpha_keeps_both() -> None:
    samples, alpha = noise(9, 5), noise(5, 9).T
    image = Image.merge("LA", [Image.fromarray(samples), Image.fromarray(np.ascontiguousarray(alpha))])
    picture = decode_image(saved(image, "PNG"), LIMIT)
    np.testing.assert_array_equal(picture.rgb[..., 1], samples)
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert picture.is_gray


def test_alpha_is_kept_next_to_the_colours() -> None:
    rgba = noise(6, 7, 4)
    rgba[0, 0] = (200, 100, 50, 0)
    picture = decode_image(saved(Image.fromarray(rgba), "PNG"), LIMIT)
    np.testing.assert_array_equal(picture.rgb[shown(picture)], rgba[shown(picture)][:, :3])
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(image_format: str) -> None:
    samples = np.array([[0, 128, 129, 257, 1000, 32768, 65407, 65535]], np.uint16)
    data = b"P5 8 1 65535\n" + samples.astype(">u2").tobytes() if image_format == "PPM" else saved(
        Image.fromarray(samples), image_format
    )  # fmt: skip
    picture = decode_image(data, LIMIT)
    np.testing.assert_array_equal(picture.rgb[0, :, 0], np.round(samples[0] / 257))
    assert picture.bit_depth == 16
    assert picture.is_gray


def test_16_bit_rgb_png_is_scaled() -> None:
    samples = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1100
    picture = decode_image(png(5, 4, 16, 2, [line.astype(">u2").tobytes() for line in samples]), LIMIT)
    assert picture.bit_depth == 16
    assert not picture.is_gray
    assert np.abs(picture.rgb.astype(float) - samples / 257).max() <= 1


def test_16_bit_rgb_tiff_is_scaled_and_known_as_such() -> None:
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
    picture = decode_image(data, LIMIT)
    assert np.abs(picture.rgb.astype(float) - np.frombuffer(samples, "<u2").reshape(4, 5, 3) / 257).max() <= 1
    assert picture.bit_depth == 16


def test_16_bit_gray_with_alpha_is_known_as_16_bit() -> None:
    lines = [struct.pack(">HH", 1000 * n, 65535 - 3000 * n) for n in range(6)]
    picture = decode_image(png(1, 6, 16, 4, lines), LIMIT)
    assert picture.bit_depth == 16
    assert picture.is_gray
    assert picture.alpha is not None
    assert np.abs(picture.rgb[:, 0, 0].astype(float) - np.arange(6) * 1000 / 257).max() <= 1
    assert np.abs(picture.alpha[:, 0].astype(float) - (65535 - np.arange(6) * 3000) / 257).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_is_black_and_white(image_format: str) -> None:
    bits = noise(9, 13) > 127
    picture = decode_image(saved(Image.fromarray(bits), image_format), LIMIT)
    np.testing.assert_array_equal(picture.rgb[..., 2], bits * 255)
    assert picture.is_gray
    assert picture.bit_depth == 1


def test_the_first_frame_of_a_gif_stands_for_it() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    picture = decode_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMIT)
    np.testing.assert_array_equal(picture.rgb, np.array(frames[0]))
    assert picture.frames == 3
    assert picture.format == "GIF"


@pytest.mark.parametrize("name", ["APNG", "animated WebP", "pages of TIFF"])
def test_the_first_frame_of_other_animations_stands_for_them(name: str) -> None:
    picture = decode_image(SEEDS[name], LIMIT)
    assert picture.frames == 3
    if name != "animated WebP":
        np.testing.assert_array_equal(picture.rgb, noise(9, 7, 3))


def test_an_mpo_is_its_first_picture_and_is_written_as_jpeg() -> None:
    picture = decode_image(SEEDS["MPO"], LIMIT)
    assert psnr_db(picture.rgb, scene()) > 30
    assert picture.frames == 2
    assert choose_output_format(picture.format) == "JPEG"


# EXIF 2.32, tag 0x0112: what was done to the upright image to get the stored one.
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
"""The integer types of TIFF 6.0, and UNDEFINED, with their codes in `struct`."""


def oriented(orientation: int, image_format: str, upright: np.ndarray, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_FROM_UPRIGHT[orientation](upright))
    return saved(Image.fromarray(stored), image_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(orientation: int, image_format: str) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    picture = decode_image(oriented(orientation, image_format, scene(), **options), LIMIT)
    assert picture.rgb.shape == (H, W, 3)
    if image_format == "JPEG":
        assert psnr_db(picture.rgb, scene()) > 40
    else:
        np.testing.assert_array_equal(picture.rgb, scene())


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_recorded_size_and_orientation_give_the_upright_size(orientation: int, image_format: str) -> None:
    picture = decode_image(oriented(orientation, image_format, scene()), LIMIT)
    size = (picture.orig_height, picture.orig_width)
    assert (size[::-1] if picture.exif_orientation in (5, 6, 7, 8) else size) == (H, W)
    if image_format != "TIFF":
        assert picture.exif_orientation == orientation


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_alpha_is_turned_with_its_colours(orientation: int) -> None:
    rgba = noise(H, W, 4)
    picture = decode_image(oriented(orientation, "PNG", rgba), LIMIT)
    np.testing.assert_array_equal(picture.rgb[shown(picture)], rgba[shown(picture)][:, :3])
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_16_bit_gray_is_turned_upright(orientation: int) -> None:
    upright = noise(H, W).astype(np.uint16) * 257
    picture = decode_image(oriented(orientation, "PNG", upright), LIMIT)
    np.testing.assert_array_equal(picture.rgb[..., 0], upright // 257)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "code"), INTEGER_TYPES)
def test_orientation_is_read_from_every_integer_type(image_format: str, order: str, kind: int, code: str) -> None:
    """TIFF 6.0 asks for a SHORT; cameras and converters also write BYTE, LONG and the signed types."""
    value = struct.pack(f"{order}{code}", 6).ljust(4, b"\0")
    mark = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    exif = b"Exif\0\0" + mark + struct.pack(f"{order}HHHI", 1, 0x0112, kind, 1) + value + bytes(4)
    stored = np.ascontiguousarray(STORED_FROM_UPRIGHT[6](scene()))
    picture = decode_image(saved(Image.fromarray(stored), image_format, exif=exif), LIMIT)
    assert (picture.exif_orientation, picture.rgb.shape) == (6, (H, W, 3))


def test_an_orientation_that_does_not_exist_changes_nothing() -> None:
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        picture = decode_image(saved(Image.fromarray(scene()), "PNG", exif=exif), LIMIT)
        np.testing.assert_array_equal(picture.rgb, scene())
