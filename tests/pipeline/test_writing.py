"""Pixels as files: formats, gray, alpha, quality."""

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.encode import choose_output_format, encode_rgb
from tests.support.pictures import encode
from tests.support.sample_images import LIMIT, SEEDS, H, W, noise, saved, scene


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def picture_of(image: Image.Image, image_format: str = "PNG") -> DecodedImage:
    return decode_image(saved(image, image_format), LIMIT)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_lossless_formats_give_back_what_was_written(image_format: str) -> None:
    rgb = noise(H, W, 3)
    assert opened(encode(rgb, picture_of(Image.fromarray(rgb)), image_format)).format == image_format
    np.testing.assert_array_equal(np.array(opened(encode(rgb, picture_of(Image.fromarray(rgb)), image_format))), rgb)
    np.testing.assert_array_equal(np.array(opened(encode_rgb(rgb, image_format))), rgb)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "BMP", "PPM"])
def test_gray_stays_gray(image_format: str) -> None:
    samples = np.tile(np.arange(36, dtype=np.uint8) * 7, (24, 1))
    picture = picture_of(Image.fromarray(samples))
    image = opened(encode(picture.rgb, picture, image_format))
    assert image.mode == "L"
    assert np.abs(np.asarray(image).astype(int) - samples).max() <= (4 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_written_where_the_format_has_it(image_format: str, mode: str) -> None:
    image = Image.fromarray(noise(H, W, len(mode) if mode == "LA" else 4), mode)
    picture = picture_of(image)
    back = opened(encode(picture.rgb, picture, image_format))
    assert back.mode == mode
    # Hidden pixels take colours of visible ones.
    visible = np.array(image)[..., -1] > 0
    np.testing.assert_array_equal(np.array(back)[visible], np.array(image)[visible])
    assert not np.array(back)[~visible, -1].any()


def test_alpha_is_written_to_webp() -> None:
    rgba = np.dstack([scene(), np.tile(np.arange(W, dtype=np.uint8) * 7, (H, 1))])
    picture = picture_of(Image.fromarray(rgba))
    back = opened(encode(picture.rgb, picture, "WEBP"))
    assert back.mode == "RGBA"
    np.testing.assert_array_equal(np.array(back)[..., 3], rgba[..., 3])


def test_alpha_is_left_out_of_a_jpeg_and_a_bmp() -> None:
    picture = picture_of(Image.fromarray(np.dstack([scene(), noise(H, W)])))
    for image_format in ("JPEG", "BMP", "PPM"):
        assert opened(encode(picture.rgb, picture, image_format)).mode == "RGB"


def test_a_jpeg_is_written_at_quality_95_with_full_colour() -> None:
    # Colours that change from pixel to pixel: with 4:2:0 they would be mixed.
    rgb = scene(64, 64)
    rgb[:, ::2, 0], rgb[::2, :, 2] = 230, 20
    data = encode(rgb, picture_of(Image.fromarray(rgb)), "JPEG")
    image = opened(data)
    assert JpegImagePlugin.get_sampling(image) == 0
    assert image.quantization == opened(saved(Image.fromarray(rgb), "JPEG", quality=95)).quantization
    assert psnr_db(np.array(image), rgb) > 40
    assert encode_rgb(rgb, "JPEG") == data


def test_the_format_of_an_output_is_that_of_its_source_where_it_can_be() -> None:
    formats = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
    assert [choose_output_format(f) for f in formats] == list(formats)
    assert choose_output_format("GIF") == "PNG"


@pytest.mark.parametrize("name", SEEDS)
def test_every_kind_of_source_can_be_written_as_what_it_becomes_and_as_png(name: str) -> None:
    picture = decode_image(SEEDS[name], LIMIT)
    for image_format in (choose_output_format(picture.format), "PNG"):
        back = decode_image(encode(picture.rgb, picture, image_format), LIMIT)
        assert back.format == image_format
        assert back.rgb.shape == picture.rgb.shape
        assert back.is_gray == picture.is_gray
        assert psnr_db(back.rgb, picture.rgb) > 25
