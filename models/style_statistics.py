"""What style is, in features of a network: Gram matrices (Gatys et al. 2016) or moments (Huang and Belongie 2017)."""

from collections.abc import Mapping

import torch
from torch import Tensor

EPSILON = 1e-5
"""Variance that a constant channel is taken to have."""


def gram(features_Bdhw: Tensor) -> Tensor:
    """(B,d,d) Gram matrix: the d×h×w features flattened to d×(hw), times their transpose, divided by hw.

    The division makes those of a large and of a small image comparable. Sums over all positions are computed in float32:
    they are too large for float16, and bfloat16 has too few bits for them.
    """
    flat = features_Bdhw.float().flatten(2)
    with torch.autocast(flat.device.type, enabled=False):
        return flat @ flat.transpose(1, 2) / flat.shape[2]


def content_loss(target: Tensor, content: Tensor) -> Tensor:
    """(B,) ½ Σ (T_c - C_c)² over the features (B,d,h,w) of one layer (Gatys et al. 2016, eq. 1)."""
    return 0.5 * (target.float() - content.float()).square().flatten(1).sum(1)


def style_loss(target: Mapping[str, Tensor], style: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """(B,) Σ_i w_i mean((G_T,i - G_S,i)²) over the Gram matrices (B,d,d) of the layers that have a weight.

    That is the style loss a Σ_i … of docs/tasks/stylize.md in units of its a, in which content is measured too.
    """
    terms = [w * (target[name] - style[name]).square().mean((1, 2)) for name, w in weights.items()]
    return torch.stack(torch.broadcast_tensors(*terms)).sum(0)


def moments(features_Bdhw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the positions, (B,d,1,1) both."""
    variance, mean = torch.var_mean(features_Bdhw.float(), (2, 3), correction=0, keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def standardise(features: Tensor, style_moments: tuple[Tensor, Tensor]) -> Tensor:
    """Features (B,d,h,w) in units of the style's: its own would have mean 0 and deviation 1 in each channel.

    Plain features are all positive, and their Gram matrix is little but the outer product of their means: to optimise it
    moves colours and hardly any strokes (Novak and Nikulin 2016 shift features for that reason). Channels that hardly vary
    in the style are not blown up.
    """
    mean, std = style_moments
    energy = (mean.square() + std.square()).mean(1, keepdim=True)
    return (features.float() - mean) / (std + 0.1 * energy.sqrt())


def adain(content: Tensor, content_moments: tuple[Tensor, Tensor], style_moments: tuple[Tensor, Tensor]) -> Tensor:
    """Content features with the style's mean and standard deviation in each channel (Huang and Belongie 2017, eq. 8)."""
    (mean, std), (style_mean, style_std) = content_moments, style_moments
    return (content - mean) / std * style_std + style_mean
