"""Images (H,W,3) uint8 to batches on a device, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imagemill.models.tiling import pad_to_size


def pad_to_stride(image: np.ndarray, stride: int) -> np.ndarray:
    """Repeat the last row and column until H and W are multiples of `stride`; (H,W,C) in, (H',W',C) out."""
    h, w = image.shape[:2]
    return np.pad(image, ((0, -h % stride), (0, -w % stride), (0, 0)), mode="edge")


def padded_size(image: np.ndarray, stride: int) -> tuple[int, int]:
    """The (H,W) that `pad_to_stride` gives; images are batched by it."""
    h, w = image.shape[:2]
    return h + -h % stride, w + -w % stride


def to_uint8_batch(images: Sequence[np.ndarray], stride: int, device: str) -> Tensor:
    """Images (H,W,3) uint8 of one padded size to (B,3,H,W) uint8, channels last: a quarter of what floats take.

    One alone is not copied, and not padded: `tiled` and `pad_to_size` do that.
    """
    if len(images) == 1 and images[0].flags.c_contiguous and images[0].flags.writeable:
        stacked = torch.from_numpy(images[0])[None]
    else:
        stacked = torch.from_numpy(np.stack([pad_to_stride(image, stride) for image in images]))
    return stacked.to(device, non_blocking=True).permute(0, 3, 1, 2)


def bytes_to_float(x_BCHW: Tensor) -> Tensor:
    """Bytes to float32 in [0,1]."""
    return x_BCHW.float().div_(255)


def to_float_batch(images: Sequence[np.ndarray], stride: int, device: str) -> Tensor:
    """Images of one padded size to (B,3,H,W) float32 in [0,1], channels last; bytes travel to the device, floats do not."""
    x = to_uint8_batch(images, stride, device)
    h, w = padded_size(images[0], stride)
    return bytes_to_float(pad_to_size(x, h, w))


def float_to_bytes(x_BCHW: Tensor) -> Tensor:
    """Float in [0,1] to uint8, clipped and rounded."""
    return x_BCHW.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)


def round_to_8_bits(x_BCHW: Tensor) -> Tensor:
    """Float in [0,1] as 8-bit files hold it, clipped and rounded; float32 in [0,1], and what is no number stays none."""
    return x_BCHW.float().clamp(0, 1).mul(255).round().div(255)


def to_uint8_images(x_BCHW: Tensor) -> np.ndarray:
    """(B,3,H,W) float in [0,1], or uint8, to (B,H,W,3) uint8."""
    x = x_BCHW if x_BCHW.dtype == torch.uint8 else float_to_bytes(x_BCHW)
    out: np.ndarray = x.permute(0, 2, 3, 1).cpu().numpy()
    return out
