"""Encoding of pixels: formats, gray, alpha, quality."""

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.encode import choose_output_format, encode_rgb
from tests.support.image_files import encode
from tests.support.sample_images import LIMIT, SEEDS, H, W, encode_as, noise, scene


def open_file(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def decode_saved(image: Image.Image, image_format: str = "PNG") -> DecodedImage:
    return decode_image(encode_as(image, image_format), LIMIT)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_encode_lossless_formats_exactly(image_format: str) -> None:
    rgb = noise(H, W, 3)
    assert open_file(encode(rgb, decode_saved(Image.fromarray(rgb)), image_format)).format == image_format
    np.testing.assert_array_equal(np.array(open_file(encode(rgb, decode_saved(Image.fromarray(rgb)), image_format))), rgb)
    np.testing.assert_array_equal(np.array(open_file(encode_rgb(rgb, image_format))), rgb)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "BMP", "PPM"])
def test_encode_keeps_gray(image_format: str) -> None:
    samples = np.tile(np.arange(36, dtype=np.uint8) * 7, (24, 1))
    decoded = decode_saved(Image.fromarray(samples))
    image = open_file(encode(decoded.rgb, decoded, image_format))
    assert image.mode == "L"
    assert np.abs(np.asarray(image).astype(int) - samples).max() <= (4 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_encode_alpha_if_format_supports_it(image_format: str, mode: str) -> None:
    image = Image.fromarray(noise(H, W, len(mode) if mode == "LA" else 4), mode)
    decoded = decode_saved(image)
    reopened_image = open_file(encode(decoded.rgb, decoded, image_format))
    assert reopened_image.mode == mode
    # Fully transparent pixels get colours of visible ones.
    is_visible = np.array(image)[..., -1] > 0
    np.testing.assert_array_equal(np.array(reopened_image)[is_visible], np.array(image)[is_visible])
    assert not np.array(reopened_image)[~is_visible, -1].any()


def test_encode_alpha_to_webp() -> None:
    rgba = np.dstack([scene(), np.tile(np.arange(W, dtype=np.uint8) * 7, (H, 1))])
    decoded = decode_saved(Image.fromarray(rgba))
    reopened_image = open_file(encode(decoded.rgb, decoded, "WEBP"))
    assert reopened_image.mode == "RGBA"
    np.testing.assert_array_equal(np.array(reopened_image)[..., 3], rgba[..., 3])


def test_encode_drops_alpha_for_jpeg_and_bmp() -> None:
    decoded = decode_saved(Image.fromarray(np.dstack([scene(), noise(H, W)])))
    for image_format in ("JPEG", "BMP", "PPM"):
        assert open_file(encode(decoded.rgb, decoded, image_format)).mode == "RGB"


def test_encode_jpeg_at_quality_95_without_subsampling() -> None:
    # Colours change from pixel to pixel, so 4:2:0 would mix them.
    rgb = scene(64, 64)
    rgb[:, ::2, 0], rgb[::2, :, 2] = 230, 20
    data = encode(rgb, decode_saved(Image.fromarray(rgb)), "JPEG")
    image = open_file(data)
    assert JpegImagePlugin.get_sampling(image) == 0
    assert image.quantization == open_file(encode_as(Image.fromarray(rgb), "JPEG", quality=95)).quantization
    assert psnr_db(np.array(image), rgb) > 40
    assert encode_rgb(rgb, "JPEG") == data


def test_output_format_follows_source_if_suitable() -> None:
    formats = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
    assert [choose_output_format(f) for f in formats] == list(formats)
    assert choose_output_format("GIF") == "PNG"


@pytest.mark.parametrize("name", SEEDS)
def test_encode_every_source_in_its_output_format(name: str) -> None:
    decoded = decode_image(SEEDS[name], LIMIT)
    for image_format in (choose_output_format(decoded.format), "PNG"):
        reopened_image = decode_image(encode(decoded.rgb, decoded, image_format), LIMIT)
        assert reopened_image.format == image_format
        assert reopened_image.rgb.shape == decoded.rgb.shape
        assert reopened_image.is_gray == decoded.is_gray
        assert psnr_db(reopened_image.rgb, decoded.rgb) > 25
