"""Decode mask files of `inpaint`, in the conventions of image editors and labelling tools."""

import numpy as np

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image, decode_stored_samples
from imagemill.pipeline.images.errors import ImageError

STORED_COLOURS = ImageConfig(icc="keep", metadata="strip")
"""A mask holds labels, not colours: a profile must not move labels across the threshold."""
MIN_BRIGHT = 128
"""The darkest value that counts as bright, and the lowest alpha that counts as visible."""
PAINT_ADVICE = "Paint the missing part white and the rest black, without transparency."


def decode_mask(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a mask file.

    - Opaque mask: bright pixels are missing. The threshold is half of the mask's brightest channel value, so white, a
      coloured palette label, and 1 in a mask of 0 and 1 all count as bright.
    - Mask with transparent pixels: the erased (transparent) pixels are missing. But if all visible pixels are bright
      and cover at most half of the mask, they are strokes that were painted onto an empty layer, and the visible
      pixels are missing.

    Args:
        data: the content of the file.
        max_pixels: limit of width × height, the key `max_pixels`.

    Returns:
        (H,W) uint8, upright: 255 where the image is missing, else 0.

    Raises:
        ImageError: as `decode_image`, or with the class Ambiguous if the mask can be read in two ways.
    """
    mask = decode_image(data, max_pixels, STORED_COLOURS)
    values = mask.rgb.max(2)
    if mask.alpha is not None and (mask.alpha < MIN_BRIGHT).any():
        return to_mask(find_missing_by_alpha(values, mask.alpha >= MIN_BRIGHT))
    if not values.any() and mask.bit_depth > 8:
        # Label numbers such as 1 of 65,535 round to 0 in 8 bits.
        samples = decode_stored_samples(data)
        if samples.dtype == np.uint8:
            raise ImageError(
                "Ambiguous",
                f"all {mask.bit_depth}-bit values are below 1/510 of full scale. Save the mask with 8 bits per sample.",
            )
        values = samples if samples.ndim == 2 else samples.max(2)
    brightest = int(values.max())
    if 0 < brightest < MIN_BRIGHT and np.count_nonzero(np.bincount(values.ravel())) > 2:
        raise ImageError(
            "Ambiguous",
            f"the mask has several gray levels, and the brightest is {brightest}, less than {MIN_BRIGHT}. {PAINT_ADVICE}",
        )
    return to_mask(values >= max(1, (brightest + 1) // 2))


def find_missing_by_alpha(values: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Find the missing pixels of a mask that has transparent pixels.

    Args:
        values: (H,W) uint8, the brightness of the mask.
        visible: (H,W) bool, where the mask is not transparent.

    Returns:
        (H,W) bool.

    Raises:
        ImageError: with the class Ambiguous.
    """
    is_bright = values[visible] >= MIN_BRIGHT
    if is_bright.size and is_bright.all():
        if visible.mean() > 0.5:
            raise ImageError(
                "Ambiguous", f"all visible pixels are bright, and they cover over half of the mask. {PAINT_ADVICE}"
            )
        return visible
    is_extreme = (values[visible] < 8) | (values[visible] > 247)
    if is_bright.any() and is_extreme.mean() > 0.99:
        raise ImageError("Ambiguous", f"the mask has black, white and transparent pixels. {PAINT_ADVICE}")
    return ~visible


def to_mask(missing: np.ndarray) -> np.ndarray:
    """Convert (H,W) bool to uint8: 255 where true."""
    return missing.view(np.uint8) * np.uint8(255)
