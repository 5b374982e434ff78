"""Luma and chroma of ITU-T T.871 (JFIF), as Pillow's convert("L") rounds them."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Planes = TypeVar("Planes", np.ndarray, Tensor)
# Rows Y, Cb, Cr over columns R, G, B.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# Pillow's own integers for luma; they add up to 65,536.
LUMA_16 = (19595, 38470, 7471)


def rgb_to_luma(x_B3HW: Tensor) -> Tensor:
    """(B,3,H,W) RGB to (B,1,H,W) luma in the same range."""
    return (x_B3HW * x_B3HW.new_tensor(YCBCR[0]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def luma_chroma_to_rgb(luma_B1HW: Tensor, chroma_B2HW: Tensor) -> Tensor:
    """Luma and chroma to (B,3,H,W) RGB, unclipped."""
    return luma_B1HW + torch.cat(chroma_offsets(*chroma_B2HW.split(1, 1)), 1)


def chroma_offsets(cb: Planes, cr: Planes) -> list[Planes]:
    """What R, G and B are above luma."""
    return [1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb]


def luma_uint8(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) integers to (H,W) luma, rounded as Pillow's convert("L") does."""
    r, g, b = LUMA_16
    planes = rgb.astype(np.int32)
    luma: np.ndarray = (planes[..., 0] * r + planes[..., 1] * g + planes[..., 2] * b + 0x8000) >> 16
    return luma


def rgb_to_chroma(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 to chroma (2,H,W) float32 in [-0.5,0.5]."""
    chroma: np.ndarray = np.tensordot(np.asarray(YCBCR[1:], np.float32), rgb.astype(np.float32) / 255, ([1], [2]))
    return chroma


def replace_chroma(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """(H,W) uint8 luma and (2,H,W) float chroma in [-0.5,0.5] to (H,W,3) uint8 whose luma is exactly the one given.

    Chroma that would leave the gamut is scaled down, which keeps luma and hue; what rounding moved is then put back on all
    three channels alike.
    """
    y = luma.astype(np.float32)
    offset = np.stack(chroma_offsets(*(chroma.astype(np.float32) * 255)), -1)
    # One level of room at both ends, for the correction below.
    above, below = np.maximum(254 - y, 0)[..., None], np.maximum(y - 1, 0)[..., None]
    limit = np.where(offset > 0, above, below) / np.maximum(np.abs(offset), 1e-6)
    offset *= np.minimum(limit.min(-1, keepdims=True), 1)
    rgb = np.rint(y[..., None] + offset).astype(np.int32)
    rgb += (luma - luma_uint8(rgb))[..., None]
    return rgb.astype(np.uint8)
