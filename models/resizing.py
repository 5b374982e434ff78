"""Images at other sizes."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def limit_side(rgb: np.ndarray, side: int) -> np.ndarray:
    """(H,W,3) uint8 with a long side of at most `side`."""
    h, w = rgb.shape[:2]
    if max(h, w) <= side:
        return rgb
    scale = side / max(h, w)
    image = Image.fromarray(rgb).resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
    return np.asarray(image)


def limit_pixels(x_BCHW: Tensor, pixels: int, stride: int) -> Tensor:
    """Images of about `pixels` at most, sides multiples of `stride`; smaller ones, whose sides are that, as they are."""
    h, w = x_BCHW.shape[2:]
    scale = min(1.0, (pixels / (h * w)) ** 0.5)
    return resize(x_BCHW, [max(1, round(n * scale / stride)) * stride for n in (h, w)])


def resize(x_BCHW: Tensor, size: list[int], mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Images at another size, (B,C,*size), as Pillow resizes them: what is reduced is filtered first.

    Bicubic goes beyond the range of its input at edges.
    """
    if list(x_BCHW.shape[2:]) == size:
        return x_BCHW
    return torch.nn.functional.interpolate(x_BCHW, size, mode=mode, antialias=True)
