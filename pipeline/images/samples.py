"""Convert samples between bit depths, and split large images into strips of rows."""

from collections.abc import Iterator

import numpy as np

STRIP_PIXELS = 2_000_000
"""Pixels that are converted at a time, so that memory never holds a second copy of a large image."""


def row_strips(width: int, height: int, multiple: int = 1) -> Iterator[slice]:
    """Split the rows of an image into strips of about STRIP_PIXELS pixels.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        multiple: every strip except the last has a multiple of this number of rows.

    Returns:
        The rows of each strip, from top to bottom.
    """
    step = max(1, STRIP_PIXELS // width // multiple) * multiple
    return (slice(top, min(height, top + step)) for top in range(0, height, step))


def to_uint8(samples: np.ndarray, bits: int) -> np.ndarray:
    """Convert unsigned samples of at most 16 bits to uint8, rounded, in the same shape."""
    return rescale(samples, (1 << bits) - 1, 255).astype(np.uint8)


def rescale(samples: np.ndarray, source_max: int, target_max: int) -> np.ndarray:
    """Scale samples in 0..source_max (at most 65535) to 0..target_max: uint32, rounded."""
    return (samples.astype(np.uint32) * target_max + source_max // 2) // source_max


def expand_depth(samples: np.ndarray, bits: int) -> None:
    """Scale unsigned samples of at most 16 bits to the full range of their dtype, in place.

    Args:
        samples: (H,W) or (H,W,C).
        bits: bit depth of the samples.
    """
    source_max, dtype_max = (1 << bits) - 1, int(np.iinfo(samples.dtype).max)
    if source_max == dtype_max:
        return
    for rows in row_strips(samples.shape[1], samples.shape[0]):
        samples[rows] = rescale(samples[rows], source_max, dtype_max)


def expand_video_range(pixels: np.ndarray, has_alpha: bool, bits: int) -> None:
    """Expand colours in video range (16 to 235 in 8 bits) to the full range, in place.

    Args:
        pixels: (H,W) or (H,W,C), uint8 or uint16, scaled to the full range of the dtype.
        has_alpha: whether the last channel is alpha, which stays as it is.
        bits: bit depth of the samples before they were scaled.
    """
    colours = pixels[..., : pixels.shape[2] - 1] if has_alpha else pixels
    black, span, dtype_max = 16 << bits - 8, 219 << bits - 8, np.iinfo(pixels.dtype).max
    for rows in row_strips(pixels.shape[1], pixels.shape[0]):
        expanded = (colours[rows].astype(np.float32) - black) * (dtype_max / span)
        colours[rows] = np.clip(np.round(expanded), 0, dtype_max)
