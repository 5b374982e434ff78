"""Resize images."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def limit_side(rgb: np.ndarray, side: int) -> np.ndarray:
    """Reduce an image (H,W,3) uint8 to a long side of at most `side` pixels; return smaller images unchanged."""
    h, w = rgb.shape[:2]
    if max(h, w) <= side:
        return rgb
    scale = side / max(h, w)
    image = Image.fromarray(rgb).resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
    return np.asarray(image)


def limit_pixels(x_BCHW: Tensor, pixels: int, stride: int) -> Tensor:
    """Reduce images (B,C,H,W) to about `pixels` pixels and to sides that are multiples of `stride`.

    Smaller images whose sides are multiples of `stride` are returned unchanged.
    """
    h, w = x_BCHW.shape[2:]
    scale = min(1.0, (pixels / (h * w)) ** 0.5)
    return resize(x_BCHW, [max(1, round(n * scale / stride)) * stride for n in (h, w)])


def resize(x_BCHW: Tensor, size: list[int], mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Resize images to (B,C,*size) with the antialiasing filter that Pillow uses.

    The bicubic filter overshoots the range of the input at edges. This is the computation of torchvision's `resize`, without
    the 2 s that importing torchvision costs each worker.
    """
    if list(x_BCHW.shape[2:]) == size:
        return x_BCHW
    return torch.nn.functional.interpolate(x_BCHW, size, mode=mode, antialias=True)
