"""Convert between images (H,W,3) uint8 and batches of tensors on a device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imagemill.models.tiling import pad_to_size


def pad_to_stride(image: np.ndarray, stride: int) -> np.ndarray:
    """Repeat the last row and column of an image (H,W,C) until H and W are multiples of `stride`; no copy if they are."""
    h, w = image.shape[:2]
    if h % stride == w % stride == 0:
        return image
    return np.pad(image, ((0, -h % stride), (0, -w % stride), (0, 0)), mode="edge")


def padded_size(image: np.ndarray, stride: int) -> tuple[int, int]:
    """Return the (H,W) of `pad_to_stride(image, stride)`. Images of equal padded size can share a batch."""
    h, w = image.shape[:2]
    return h + -h % stride, w + -w % stride


def to_uint8_batch(images: Sequence[np.ndarray], stride: int, device: str) -> Tensor:
    """Stack images (H,W,3) uint8 of one padded size to (B,3,H,W) uint8, channels last.

    A single image is neither copied nor padded, to save memory; `apply_tiled` and `pad_to_size` pad it later.
    """
    if len(images) == 1 and images[0].flags.c_contiguous and images[0].flags.writeable:
        stacked = torch.from_numpy(images[0])[None]
    else:
        stacked = torch.from_numpy(np.stack([pad_to_stride(image, stride) for image in images]))
    return stacked.to(device, non_blocking=True).permute(0, 3, 1, 2)


def bytes_to_float(x_BCHW: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0,1]."""
    return x_BCHW.float().div_(255)


def to_float_batch(images: Sequence[np.ndarray], stride: int, device: str) -> Tensor:
    """Stack images (H,W,3) uint8 of one padded size to (B,3,H,W) float32 in [0,1], channels last.

    Bytes are sent to the device and converted there, because floats would be four times as large.
    """
    x = to_uint8_batch(images, stride, device)
    h, w = padded_size(images[0], stride)
    return bytes_to_float(pad_to_size(x, h, w))


def float_to_bytes(x_BCHW: Tensor) -> Tensor:
    """Clip floats to [0,1] and round them to uint8."""
    return x_BCHW.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)


def round_to_8_bits(x_BCHW: Tensor) -> Tensor:
    """Clip floats to [0,1] and round them to the 256 values of 8-bit files; the result is float32, and NaN stays NaN."""
    return x_BCHW.float().clamp(0, 1).mul(255).round().div(255)


def to_uint8_images(x_BCHW: Tensor) -> np.ndarray:
    """Convert (B,C,H,W) float in [0,1] or uint8 to (B,H,W,C) uint8."""
    x = x_BCHW if x_BCHW.dtype == torch.uint8 else float_to_bytes(x_BCHW)
    out: np.ndarray = x.permute(0, 2, 3, 1).cpu().numpy()
    return out
