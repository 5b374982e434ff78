"""Figures of merit."""

import numpy as np
import torch
from torch import Tensor

from imagemill.models.type_checks import require_type

# MS-SSIM is defined from 161 on; torchmetrics 1.9 divides by 16 and rounds down before it compares, so it refuses up to 175.
SSIM_SIDE, MS_SSIM_SIDE = 11, 176
"""Smallest sides, in pixels, of images for SSIM (a window of 11) and MS-SSIM (five scales of it)."""


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite for equal ones."""
    return psnr_from_mse(squared_error(a, b) / a.size)


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the squared differences of two uint8 arrays of one shape."""
    # Some rows at a time: a difference in float of a large image would be its largest array.
    rows = range(0, len(a), 512)
    return sum(float(np.square(a[r : r + 512].astype(np.float32) - b[r : r + 512]).sum(dtype=np.float64)) for r in rows)


def psnr_from_mse(mse: float) -> float:
    """PSNR in dB of a mean squared error of values in [0,255]; infinite for none."""
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two images (H,W,3) uint8 whose sides are at least SSIM_SIDE; 1 for equal ones.

    Wang et al. 2004: a Gaussian window of 11 pixels and sigma 1.5; the mean over the three channels.
    """
    # torchmetrics takes seconds to import, and the actors, which need PSNR alone, import this file.
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(to_tensor(a), to_tensor(b), data_range=255.0)
    return float(require_type(value, Tensor))


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Multi-scale structural similarity of two images (H,W,3) uint8 of sides from MS_SSIM_SIDE on (Wang et al. 2003)."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return float(multiscale_structural_similarity_index_measure(to_tensor(a), to_tensor(b), data_range=255.0))


def to_tensor(rgb: np.ndarray) -> Tensor:
    """(H,W,3) uint8 to (1,3,H,W) float32 in [0,255]."""
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float()


def checkerboard(x_BHW: np.ndarray, period: int) -> float:
    """How much of what varies in images repeats every `period` pixels: a share of their power, in [0,1].

    A decoder that enlarges by strides leaves a pattern of the period of its strides (Odena et al. 2016). In the spectrum it
    is the power at the frequencies (k·H/period, l·W/period), (k,l) ≠ (0,0); by Parseval, that is the variance of the image's
    means over the period² places that a pixel can have within a period, which is how it is computed. The shares are those
    of all images together. White noise has (period² - 1) / (H·W - 1).

    Args: x (B,H,W), images or errors of reconstructions; `period` divides H and W.
    """
    batch, h, w = x_BHW.shape
    x = x_BHW.astype(np.float64)
    x = x - x.mean((1, 2), keepdims=True)
    places = x.reshape(batch, h // period, period, w // period, period).mean((1, 3))
    total = np.square(x).mean()
    return float(np.square(places).mean() / total) if total else 0.0
