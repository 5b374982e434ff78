"""Style as statistics of features: Gram matrices (Gatys et al. 2016) and moments (Huang and Belongie 2017)."""

from collections.abc import Mapping

import torch
from torch import Tensor

EPSILON = 1e-5
"""Added to variances, so that a constant channel has a standard deviation above 0."""


def gram(features_Bdhw: Tensor) -> Tensor:
    """Return the Gram matrices (B,d,d) of features: the d×(h·w) matrix times its transpose, divided by h·w.

    The division makes images of different sizes comparable. The sums are computed in float32, because they exceed the range
    of float16 and the precision of bfloat16.
    """
    flat = features_Bdhw.float().flatten(2)
    with torch.autocast(flat.device.type, enabled=False):
        return flat @ flat.transpose(1, 2) / flat.shape[2]


def content_loss(target: Tensor, content: Tensor) -> Tensor:
    """Return ½ Σ (T_c - C_c)² over the features (B,d,h,w) of one layer, (B,) (Gatys et al. 2016, eq. 1)."""
    return 0.5 * (target.float() - content.float()).square().flatten(1).sum(1)


def style_loss(target: Mapping[str, Tensor], style: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """Return Σ_i w_i mean((G_T,i - G_S,i)²) over the layers that have a weight, (B,).

    This is the style loss of docs/style.md divided by its factor a, which is also the unit of the content loss.

    Args:
        target: Gram matrices (B,d,d) of the optimised image, by layer.
        style: Gram matrices of the style, by layer.
        weights: weights of the layers, floats or (B,).
    """
    terms = [w * (target[name] - style[name]).square().mean((1, 2)) for name, w in weights.items()]
    return torch.stack(torch.broadcast_tensors(*terms)).sum(0)


def moments(features_Bdhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel over all positions, both (B,d,1,1)."""
    variance, mean = torch.var_mean(features_Bdhw.float(), (2, 3), correction=0, keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def standardise(features: Tensor, style_moments: tuple[Tensor, Tensor]) -> Tensor:
    """Normalise features (B,d,h,w) by the moments of the style, whose own features become mean 0 and deviation 1.

    Plain features are all positive, so that their Gram matrix is almost the outer product of their means. Minimising its
    difference changes colours and hardly any strokes; Novak and Nikulin 2016 shift features for the same reason. Channels
    that hardly vary in the style are not amplified.
    """
    return (features.float() - style_moments[0]) / standard_unit(style_moments)


def standard_unit(style_moments: tuple[Tensor, Tensor]) -> Tensor:
    """Return the unit (B,d,1,1) of the standardised features of each channel."""
    mean, std = style_moments
    energy = (mean.square() + std.square()).mean(1, keepdim=True)
    unit: Tensor = std + 0.1 * energy.sqrt()
    return unit


def adain(content: Tensor, content_moments: tuple[Tensor, Tensor], style_moments: tuple[Tensor, Tensor]) -> Tensor:
    """Give content features the style's mean and deviation in each channel (Huang and Belongie 2017, eq. 8)."""
    (mean, std), (style_mean, style_std) = content_moments, style_moments
    return (content - mean) / std * style_std + style_mean
