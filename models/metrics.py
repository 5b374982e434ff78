"""Image quality metrics."""

import numpy as np
import torch
from torch import Tensor

from imagemill.models.type_checks import require_type

# MS-SSIM is defined for sides from 161. torchmetrics 1.9 refuses sides up to 175, because it rounds side / 16 down.
SSIM_SIDE, MS_SSIM_SIDE = 11, 176
"""Smallest sides, in pixels, of images for SSIM (a window of 11) and MS-SSIM (the window at five scales)."""


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite for equal images."""
    return psnr_from_mse(squared_error(a, b) / a.size)


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sum of the squared differences of two uint8 arrays of one shape."""
    # 512 rows at a time, because the float difference of a large image would need more memory than the image.
    rows = range(0, len(a), 512)
    return sum(float(np.square(a[r : r + 512].astype(np.float32) - b[r : r + 512]).sum(dtype=np.float64)) for r in rows)


def psnr_from_mse(mse: float) -> float:
    """Return the PSNR in dB of a mean squared error of values in [0,255]; infinite for an error of 0."""
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the structural similarity of two images (H,W,3) uint8 with sides of at least SSIM_SIDE; 1 for equal images.

    Wang et al. 2004: a Gaussian window of 11 pixels with sigma 1.5, averaged over the three channels.
    """
    # Imported here because it takes seconds, and workers import this file for the PSNR alone.
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(to_tensor(a), to_tensor(b), data_range=255.0)
    return float(require_type(value, Tensor))


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the multi-scale SSIM of two images (H,W,3) uint8 with sides of at least MS_SSIM_SIDE (Wang et al. 2003)."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return float(multiscale_structural_similarity_index_measure(to_tensor(a), to_tensor(b), data_range=255.0))


def to_tensor(rgb: np.ndarray) -> Tensor:
    """Convert an image (H,W,3) uint8 to (1,3,H,W) float32 in [0,255]."""
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float()


def checkerboard(x_BHW: np.ndarray, period: int) -> float:
    """Return the share of the variance of images that repeats every `period` pixels, in [0,1].

    Decoders with strided upsampling leave a pattern whose period is their stride (Odena et al. 2016). In the spectrum, this
    is the power at the frequencies (k·H/period, l·W/period), (k,l) ≠ (0,0). By Parseval's theorem it equals the variance of
    the means of the period² pixel phases, which is how it is computed. White noise has (period² - 1) / (H·W - 1).

    Args:
        x_BHW: images, or errors of reconstructions, which are measured together.
        period: in pixels; must divide H and W.
    """
    batch, h, w = x_BHW.shape
    x = x_BHW.astype(np.float64)
    x = x - x.mean((1, 2), keepdims=True)
    phases = x.reshape(batch, h // period, period, w // period, period).mean((1, 3))
    total = np.square(x).mean()
    return float(np.square(phases).mean() / total) if total else 0.0
