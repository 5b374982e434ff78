"""Measure waves of 2, 4 and 8 pixels, which upsampling can leave in an image, where the original image is flat."""

import numpy as np

from imagemill.models.colour import luma_uint8

SIDE = 32
"""Side of a block in pixels."""
STEP = 16
"""Distance between blocks in pixels."""
PERIOD = 8
"""The longest period in pixels. The others divide it."""
FLAT_GRADIENT = 4.0
"""A block is flat if the root mean square of its luma gradient is below this many 8-bit levels per pixel."""


def find_flat_blocks(rgb: np.ndarray) -> np.ndarray:
    """Return the top left corners (N,2) of the flat blocks of an image (H,W,3) uint8."""
    squares = np.square(luma_gradient(rgb)).sum(0)
    corners = all_blocks(rgb)
    energies = [squares[y : y + SIDE, x : x + SIDE].mean() for y, x in corners]
    return corners[np.array(energies) < FLAT_GRADIENT**2]


def all_blocks(rgb: np.ndarray) -> np.ndarray:
    """Return the top left corners (N,2) of all blocks of an image (H,W,3)."""
    rows, columns = (range(0, length - SIDE + 1, STEP) for length in rgb.shape[:2])
    return np.array([(y, x) for y in rows for x in columns], np.int64).reshape(-1, 2)


def luma_gradient(rgb: np.ndarray) -> np.ndarray:
    """Return the differences of luma to the next row and to the next column, (2,H,W) float64; 0 at the last ones."""
    luma = luma_uint8(rgb).astype(np.float64)
    return np.stack([np.diff(luma, axis=0, append=luma[-1:]), np.diff(luma, axis=1, append=luma[:, -1:])])


def gradient_energy(rgb: np.ndarray, corners: np.ndarray) -> tuple[float, float]:
    """Return the energy of the luma gradient in blocks of an image: of what repeats every 8 pixels, and of everything.

    What repeats every 8 pixels along rows and columns are the waves of 8, 4 and 2 pixels (and 8/3). White noise has 1/16 of
    its energy there, because a block has 16 repetitions.

    Args:
        rgb: image (H,W,3) uint8.
        corners: top left corners (N,2) of the blocks.
    """
    gradient, repeats = luma_gradient(rgb), SIDE // PERIOD
    repeated = total = 0.0
    for y, x in corners:
        block = gradient[:, y : y + SIDE, x : x + SIDE]
        block = block - block.mean((1, 2), keepdims=True)
        tile = block.reshape(2, repeats, PERIOD, repeats, PERIOD).mean((1, 3))
        repeated += float(np.square(tile).sum()) * repeats**2
        total += float(np.square(block).sum())
    return repeated, total
