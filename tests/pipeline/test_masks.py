"""Mask files of `inpaint`, in the conventions of image editors and labelling tools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.masks import decode_mask
from tests.support.exact_writers import png_file
from tests.support.image_files import encode_as
from tests.support.tiffs import encode_tiff

LIMIT = 10**6
HOLE = np.zeros((24, 36), bool)
HOLE[6:15, 10:30] = True


def draw_gray_mask(inside: int, outside: int = 0) -> np.ndarray:
    return np.where(HOLE, inside, outside).astype(np.uint8)


def draw_palette_mask(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(HOLE.astype(np.uint8)).convert("P")
    image.putdata(HOLE.astype(np.uint8).ravel().tolist())
    image.putpalette([level for colour in colours for level in colour])
    return image


def add_alpha(value: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([value, value, value, alpha])


PHOTO = (np.arange(24 * 36).reshape(24, 36) % 200 + 20).astype(np.uint8)
MASKS = {
    "black and white": encode_as(draw_gray_mask(255), "PNG"),
    "JPEG": encode_as(draw_gray_mask(255), "JPEG", quality=80),
    "zero and one": encode_as(draw_gray_mask(1), "PNG"),
    "bilevel": encode_as(Image.fromarray(HOLE), "PNG"),
    "dark label": encode_as(draw_gray_mask(37), "PNG"),
    "label of a palette": encode_as(draw_palette_mask((0, 0, 0), (128, 0, 0)), "PNG"),
    "red label": encode_as(np.dstack([draw_gray_mask(255), draw_gray_mask(0), draw_gray_mask(0)]), "PNG"),
    "16 bits": encode_as(np.where(HOLE, 65535, 0).astype(np.uint16), "PNG"),
    "zero and one in 16 bits": encode_as(np.where(HOLE, 1, 0).astype(np.uint16), "PNG"),
    "zero and one in 16-bit RGB": png_file(np.dstack([HOLE] * 3).astype(int), 16, 2),
    "erased from black": encode_as(add_alpha(draw_gray_mask(0), draw_gray_mask(0, 255)), "PNG"),
    "erased from a photo": encode_as(add_alpha(PHOTO, draw_gray_mask(0, 255)), "PNG"),
    "erased from a photo, softly": encode_as(add_alpha(PHOTO, draw_gray_mask(60, 220)), "WEBP", lossless=True),
    "white strokes on an empty layer": encode_as(add_alpha(draw_gray_mask(255), draw_gray_mask(255)), "PNG"),
    "white strokes on a white empty layer": encode_as(add_alpha(draw_gray_mask(255, 255), draw_gray_mask(200)), "PNG"),
    "opaque with an alpha channel": encode_as(add_alpha(draw_gray_mask(255), draw_gray_mask(255, 255)), "PNG"),
}


@pytest.mark.parametrize("data", MASKS.values(), ids=MASKS.keys())
def test_mask_of_every_convention_is_decoded(data: bytes) -> None:
    assert np.array_equal(decode_mask(data, LIMIT), np.where(HOLE, 255, 0))


def test_mask_damage_message_omits_accept_damaged() -> None:
    """--accept-damaged excludes masks, because damage would change which pixels are kept."""
    mask = np.random.default_rng(1).integers(0, 2, (64, 64), np.uint8) * 255
    data = encode_as(mask, "JPEG", quality=95)
    with pytest.raises(ImageError, match=r"Restore the file\.$") as e:
        decode_mask(data[: len(data) // 2] + b"\xff\xd9", LIMIT)
    assert e.value.error_class == "DamagedImage"


@given(st.integers(1, 255))
def test_mask_of_two_values_works_at_any_level(level: int) -> None:
    assert np.array_equal(decode_mask(encode_as(draw_gray_mask(level), "PNG"), LIMIT) > 0, HOLE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_of_zeros_has_no_missing_pixels(dtype: type) -> None:
    assert not decode_mask(encode_as(draw_gray_mask(0).astype(dtype), "PNG"), LIMIT).any()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode_as(np.minimum(PHOTO, 90), "PNG"), "several gray levels, and the brightest is 90, less than 128"),
        (encode_as(np.where(HOLE, 1 + np.arange(36) % 2, 0).astype(np.uint16), "PNG"), "several gray levels"),
        (encode_tiff(HOLE[..., None].astype(int), 16, photometric=1), "all 16-bit values are below"),
        (
            encode_as(
                add_alpha(draw_gray_mask(255), np.where(np.arange(36) < 5, 0, 255).astype(np.uint8) | draw_gray_mask(0)),
                "PNG",
            ),
            "black, white and transparent pixels",
        ),
        (encode_as(add_alpha(draw_gray_mask(255, 255), draw_gray_mask(0, 255)), "PNG"), "all visible pixels are bright"),
    ],
    ids=["labels", "labels of 16 bits", "a TIFF of 0 and 1 in 16 bits", "both ways", "erased from white"],
)
def test_mask_that_is_ambiguous_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as error_info:
        decode_mask(data, LIMIT)
    assert error_info.value.error_class == "Ambiguous"


@pytest.mark.parametrize("levels", [draw_gray_mask(255), HOLE.astype(np.uint16)], ids=["8 bits", "0 and 1 in 16 bits"])
def test_mask_is_turned_upright(levels: np.ndarray) -> None:
    """A mask covers the image as viewers show it, so the EXIF orientation of the mask applies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = decode_mask(encode_as(levels, "PNG", exif=exif.tobytes()), LIMIT)
    assert np.array_equal(rotated > 0, np.rot90(HOLE, -1))
