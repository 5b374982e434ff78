"""Give features the mean and covariance of a style, so that their Gram matrix is that of the style.

The map is the optimal transport between two Gaussians: of all linear maps that give the content features the covariance of
the style, it changes them least (Lu et al. 2019, eq. 5; whitening and colouring: Li et al. 2017).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-2
"""Share of the mean variance that is added to each content channel, which limits how much faint variations are amplified."""
MIN_EIGENVALUE = 1e-6
"""Smaller eigenvalues, relative to the largest one, are raised to this size."""


def covariance(features_Bdhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (B,d,1) and the covariance (B,d,d) of the channels over all positions, in float32."""
    flat = features_Bdhw.float().flatten(2)
    mean = flat.mean(2, keepdim=True)
    centred = flat - mean
    with torch.autocast(flat.device.type, enabled=False):
        return mean, centred @ centred.transpose(1, 2) / flat.shape[2]


def symmetric_power(matrix_Bdd: Tensor, exponent: float) -> Tensor:
    """Return a power of symmetric positive semidefinite matrices (B,d,d) by their eigenvalues."""
    # A matrix with many equal eigenvalues, such as 0, makes LAPACK fail in float32.
    values, vectors = torch.linalg.eigh(matrix_Bdd + MIN_EIGENVALUE * mean_variance(matrix_Bdd))
    values = values.clamp_min(MIN_EIGENVALUE * values[:, -1:].clamp_min(MIN_EIGENVALUE))
    return (vectors * values.pow(exponent).unsqueeze(1)) @ vectors.transpose(1, 2)


def mean_variance(covariance_Bdd: Tensor) -> Tensor:
    """Return the mean of the diagonal times the identity, (B,d,d)."""
    size = covariance_Bdd.shape[-1]
    mean_B11 = covariance_Bdd.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    return mean_B11 * torch.eye(size, device=covariance_Bdd.device)


@dataclass(frozen=True)
class Transport:
    """The affine map of the features of one layer; call it to apply it.

    Attributes:
        matrix: (B,d,d).
        mean: of the content features, (B,d,1).
        style_mean: (B,d,1).
    """

    matrix: Tensor
    mean: Tensor
    style_mean: Tensor

    def __call__(self, features_Bdhw: Tensor) -> Tensor:
        """Map features (B,d,h,w) to features of the same shape."""
        flat = features_Bdhw.float().flatten(2) - self.mean
        with torch.autocast(flat.device.type, enabled=False):
            return (self.matrix @ flat + self.style_mean).view(features_Bdhw.shape)


def build_transport(features_Bdhw: Tensor, style_mean: Tensor, style_root: Tensor) -> Transport:
    """Measure the content features of one layer and return their map to a style.

    Args:
        features_Bdhw: features of the content images.
        style_mean: mean of the style's features, (B,d,1), or (1,d,1) for all images.
        style_root: square root of the covariance of the style's features, (B,d,d) or (1,d,d).
    """
    mean, content = covariance(features_Bdhw)
    with torch.autocast(content.device.type, enabled=False):
        content = content + RIDGE * mean_variance(content)
        # T = S (S C S)^(-1/2) S has T C T = S², and needs one decomposition for each image.
        matrix = style_root @ symmetric_power(style_root @ content @ style_root, -0.5) @ style_root
    return Transport(matrix, mean, style_mean)
