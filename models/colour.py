"""Luma and chroma of ITU-T T.871 (JFIF), rounded like Pillow's convert("L")."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Planes = TypeVar("Planes", np.ndarray, Tensor)
# Rows are Y, Cb and Cr; columns are R, G and B.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# The integers that Pillow computes luma with; their sum is 65,536.
LUMA_16 = (19595, 38470, 7471)


def rgb_to_luma(x_B3HW: Tensor) -> Tensor:
    """Convert RGB (B,3,H,W) to luma (B,1,H,W) in the same range."""
    return (x_B3HW * x_B3HW.new_tensor(YCBCR[0]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def rgb_to_chroma_planes(x_B3HW: Tensor) -> Tensor:
    """Convert RGB (B,3,H,W) in [0,1] to Cb and Cr (B,2,H,W) in [-0.5,0.5]."""
    return torch.einsum("bchw,dc->bdhw", x_B3HW, x_B3HW.new_tensor(YCBCR[1:]))


def luma_chroma_to_rgb(luma_B1HW: Tensor, chroma_B2HW: Tensor) -> Tensor:
    """Convert luma (B,1,H,W) and chroma (B,2,H,W) to RGB (B,3,H,W), not clipped."""
    return luma_B1HW + torch.cat(chroma_offsets(*chroma_B2HW.split(1, 1)), 1)


def chroma_offsets(cb: Planes, cr: Planes) -> list[Planes]:
    """Return the differences R - luma, G - luma and B - luma."""
    return [1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb]


def luma_uint8(rgb: np.ndarray) -> np.ndarray:
    """Convert RGB (H,W,3) integers to luma (H,W) int32, rounded like Pillow's convert("L")."""
    r, g, b = LUMA_16
    planes = rgb.astype(np.int32)
    luma: np.ndarray = (planes[..., 0] * r + planes[..., 1] * g + planes[..., 2] * b + 0x8000) >> 16
    return luma


def rgb_to_chroma(rgb: np.ndarray) -> np.ndarray:
    """Convert RGB (H,W,3) uint8 to chroma (2,H,W) float32 in [-0.5,0.5]."""
    chroma: np.ndarray = np.tensordot(np.asarray(YCBCR[1:], np.float32), rgb.astype(np.float32) / 255, ([1], [2]))
    return chroma


def replace_chroma(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Combine luma and chroma to RGB (H,W,3) uint8 whose luma is exactly the given one.

    Chroma outside the gamut is scaled down, which keeps luma and hue. The rounding error of the luma is then added to all
    three channels.

    Args:
        luma: (H,W) uint8.
        chroma: (2,H,W) float in [-0.5,0.5].
    """
    y = luma.astype(np.float32)
    offset = np.stack(chroma_offsets(*(chroma.astype(np.float32) * 255)), -1)
    # Leave one level at both ends for the correction below.
    above, below = np.maximum(254 - y, 0)[..., None], np.maximum(y - 1, 0)[..., None]
    limit = np.where(offset > 0, above, below) / np.maximum(np.abs(offset), 1e-6)
    offset *= np.minimum(limit.min(-1, keepdims=True), 1)
    rgb = np.rint(y[..., None] + offset).astype(np.int32)
    rgb += (luma - luma_uint8(rgb))[..., None]
    return rgb.astype(np.uint8)
