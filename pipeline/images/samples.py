"""Scale samples between bit depths, and cut large images into strips."""

from collections.abc import Iterator

import numpy as np

STRIP_PIXELS = 2_000_000
"""Pixels that are converted at a time, so that no second copy of a large image is held."""


def row_strips(width: int, height: int, multiple: int = 1) -> Iterator[slice]:
    """The rows of an image, some STRIP_PIXELS at a time; strips but the last have a multiple of `multiple` rows."""
    step = max(1, STRIP_PIXELS // width // multiple) * multiple
    return (slice(top, min(height, top + step)) for top in range(0, height, step))


def to_uint8(samples: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned samples of at most 16 bits as uint8, rounded, of the same shape."""
    return rescale(samples, (1 << bits) - 1, 255).astype(np.uint8)


def rescale(samples: np.ndarray, most: int, wanted: int) -> np.ndarray:
    """Samples of 0 to `most` (at most 65535) as uint32 of 0 to `wanted`, rounded, of the same shape."""
    return (samples.astype(np.uint32) * wanted + most // 2) // most


def expand_video_range(pixels: np.ndarray, has_alpha: bool, bits: int) -> None:
    """Expand colours in video range (16 to 235 in 8 bits) to the whole range, in place.

    Args: pixels: (H,W) or (H,W,C) uint8 or uint16 with samples of `bits` bits that use the whole range of their type.
    """
    colours = pixels[..., : pixels.shape[2] - 1] if has_alpha else pixels
    black, span, most = 16 << bits - 8, 219 << bits - 8, np.iinfo(pixels.dtype).max
    for rows in row_strips(pixels.shape[1], pixels.shape[0]):
        colours[rows] = np.clip(np.round((colours[rows].astype(np.float32) - black) * (most / span)), 0, most)
