"""Mask files of inpaint in the ways that editors and label tools save them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.masks import decode_mask
from tests.support.exact_writers import png_file
from tests.support.pictures import saved
from tests.support.tiffs import tiff

LIMIT = 10**6
HOLE = np.zeros((24, 36), bool)
HOLE[6:15, 10:30] = True


def gray(inside: int, outside: int = 0) -> np.ndarray:
    return np.where(HOLE, inside, outside).astype(np.uint8)


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(HOLE.astype(np.uint8)).convert("P")
    image.putdata(HOLE.astype(np.uint8).ravel().tolist())
    image.putpalette([level for colour in colours for level in colour])
    return image


def with_alpha(value: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([value, value, value, alpha])


PHOTO = (np.arange(24 * 36).reshape(24, 36) % 200 + 20).astype(np.uint8)
MASKS = {
    "black and white": saved(gray(255), "PNG"),
    "JPEG": saved(gray(255), "JPEG", quality=80),
    "zero and one": saved(gray(1), "PNG"),
    "bilevel": saved(Image.fromarray(HOLE), "PNG"),
    "dark label": saved(gray(37), "PNG"),
    "label of a palette": saved(palette((0, 0, 0), (128, 0, 0)), "PNG"),
    "red label": saved(np.dstack([gray(255), gray(0), gray(0)]), "PNG"),
    "16 bits": saved(np.where(HOLE, 65535, 0).astype(np.uint16), "PNG"),
    "zero and one in 16 bits": saved(np.where(HOLE, 1, 0).astype(np.uint16), "PNG"),
    "zero and one in 16-bit RGB": png_file(np.dstack([HOLE] * 3).astype(int), 16, 2),
    "erased from black": saved(with_alpha(gray(0), gray(0, 255)), "PNG"),
    "erased from a photo": saved(with_alpha(PHOTO, gray(0, 255)), "PNG"),
    "erased from a photo, softly": saved(with_alpha(PHOTO, gray(60, 220)), "WEBP", lossless=True),
    "white strokes on an empty layer": saved(with_alpha(gray(255), gray(255)), "PNG"),
    "white strokes on a white empty layer": saved(with_alpha(gray(255, 255), gray(200)), "PNG"),
    "opaque with an alpha channel": saved(with_alpha(gray(255), gray(255, 255)), "PNG"),
}


@pytest.mark.parametrize("data", MASKS.values(), ids=MASKS.keys())
def test_mask_says_what_is_missing(data: bytes) -> None:
    assert np.array_equal(decode_mask(data, LIMIT), np.where(HOLE, 255, 0))


def test_damaged_mask_does_not_offer_to_be_accepted() -> None:
    """--accept-damaged is for images: a hole in a mask would change which pixels are kept."""
    mask = np.random.default_rng(1).integers(0, 2, (64, 64), np.uint8) * 255
    data = saved(mask, "JPEG", quality=95)
    with pytest.raises(ImageError, match=r"Restore the file\.$") as e:
        decode_mask(data[: len(data) // 2] + b"\xff\xd9", LIMIT)
    assert e.value.error_class == "DamagedImage"


@given(st.integers(1, 255))
def test_mask_of_two_values_works_at_any_level(level: int) -> None:
    assert np.array_equal(decode_mask(saved(gray(level), "PNG"), LIMIT) > 0, HOLE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_empty_mask_says_nothing_is_missing(dtype: type) -> None:
    assert not decode_mask(saved(gray(0).astype(dtype), "PNG"), LIMIT).any()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(np.minimum(PHOTO, 90), "PNG"), "several gray levels, and the brightest is 90, less than 128"),
        (saved(np.where(HOLE, 1 + np.arange(36) % 2, 0).astype(np.uint16), "PNG"), "several gray levels"),
        (tiff(HOLE[..., None].astype(int), 16, photometric=1), "all 16-bit values are below"),
        (
            saved(with_alpha(gray(255), np.where(np.arange(36) < 5, 0, 255).astype(np.uint8) | gray(0)), "PNG"),
            "black, white and transparent pixels",
        ),
        (saved(with_alpha(gray(255, 255), gray(0, 255)), "PNG"), "all visible pixels are bright"),
    ],
    ids=["labels", "labels of 16 bits", "a TIFF of 0 and 1 in 16 bits", "both ways", "erased from white"],
)
def test_mask_that_can_be_read_in_two_ways_is_a_reject(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_mask(data, LIMIT)
    assert caught.value.error_class == "Ambiguous"


@pytest.mark.parametrize("levels", [gray(255), HOLE.astype(np.uint16)], ids=["8 bits", "0 and 1 in 16 bits"])
def test_mask_is_turned_by_its_own_orientation(levels: np.ndarray) -> None:
    """The docs say: a mask covers the image as viewers show it, and so it is turned as viewers turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_mask(saved(levels, "PNG", exif=exif.tobytes()), LIMIT)
    assert np.array_equal(turned > 0, np.rot90(HOLE, -1))
