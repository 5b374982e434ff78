"""Mask files of `inpaint`: which pixels of an image are missing, in the ways that editors and label tools save it."""

import numpy as np

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image, decode_stored_samples
from imagemill.pipeline.images.errors import ImageError

AS_STORED = ImageConfig(icc="keep", metadata="strip")
"""A mask holds labels, not colours: a profile must not move them over the threshold."""
BRIGHT = 128
ERASED = "erase the missing part of an opaque picture, or paint it white on black without transparency"


def decode_mask(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a mask file.

    - Opaque masks: bright pixels are missing. The threshold is half of the brightest channel value of the mask, so white, a
      coloured label of a palette, and the 1 of a mask of 0 and 1 all work.
    - Masks with transparent pixels: what was erased is missing. If all that is visible is bright, strokes were painted
      onto an empty layer: then the visible pixels are missing, at most half of the mask.

    Args:
        max_pixels: limit of width × height.

    Returns: (H,W) uint8, upright: 255 where the image is missing, else 0.

    Raises: ImageError as `decode_image`; with the class Ambiguous where a mask can be read in two ways.
    """
    picture = decode_image(data, max_pixels, AS_STORED)
    value = picture.rgb.max(2)
    if picture.alpha is not None and (picture.alpha < BRIGHT).any():
        return in_255(of_transparency(value, picture.alpha >= BRIGHT))
    if not value.any() and picture.bit_depth > 8:
        # Label numbers such as 1 of 65,535 vanish in 8 bits.
        samples = decode_stored_samples(data)
        if samples.dtype == np.uint8:
            raise ImageError(
                "Ambiguous", f"its {picture.bit_depth}-bit values are all below 1/510 of full scale; save the mask in 8 bits"
            )
        value = samples if samples.ndim == 2 else samples.max(2)
    brightest = int(value.max())
    if 0 < brightest < BRIGHT and np.count_nonzero(np.bincount(value.ravel())) > 2:
        raise ImageError(
            "Ambiguous",
            f"it has several gray levels and none of at least {BRIGHT} (the brightest is {brightest}); "
            "paint what is missing white and the rest black",
        )
    return in_255(value >= max(1, (brightest + 1) // 2))


def of_transparency(value: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """(H,W) bool, what a mask with transparent pixels says is missing, from its brightness (H,W) uint8."""
    bright = value[visible] >= BRIGHT
    if bright.size and bright.all():
        if visible.mean() > 0.5:
            raise ImageError(
                "Ambiguous", "what is visible is all bright; paint what is missing white on black without transparency"
            )
        return visible
    extremes = (value[visible] < 8) | (value[visible] > 247)
    if bright.any() and extremes.mean() > 0.99:
        raise ImageError("Ambiguous", f"it has black, white and transparent pixels; {ERASED}")
    return ~visible


def in_255(missing: np.ndarray) -> np.ndarray:
    """(H,W) bool as uint8: 255 where true."""
    return missing.view(np.uint8) * np.uint8(255)
