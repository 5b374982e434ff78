"""A U-Net that fills what is missing of an image: holes, and whole colour planes.

x · known ── push-pull fill ─┬─ trunk ─(+ fill)─ x_hat
known ───────────────────────┘

The finest level works on pixels. Pixel-unshuffled, what surrounds a lost pixel would be other channels for each place in a
2×2 square, and four functions to learn where one is meant.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imagemill.models.layers import zero_init
from imagemill.models.residual_unet import ResidualUNet


def push_pull(x_BCHW: Tensor, known_BCHW: Tensor) -> Tensor:
    """Unknown values interpolated from known ones over a pyramid (Gortler et al. 1996, section 3.4.2); known ones stay.

    Args: x (B,C,H,W) float; known, the same shape, 1 where x is known and 0 where not. A channel of which nothing is
        known takes the mean of the other channels; an image of which nothing is known becomes 0.5.
    """
    filled, weight = fill_gaps(x_BCHW * known_BCHW, known_BCHW)
    present = (weight > 0).to(x_BCHW.dtype)
    others = (filled * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    others = torch.where(present.sum(1, keepdim=True) > 0, others, 0.5)
    filled = torch.where(present > 0, filled, others)
    return torch.where(known_BCHW > 0, x_BCHW, filled)


def fill_gaps(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x (weighted mean, zero where the weight is) with gaps filled from the coarser levels; the weight of the coarsest."""
    h, w = x.shape[2:]
    if h == 1 and w == 1:
        return x, weight
    even = (0, w % 2, 0, h % 2)
    total = nn.functional.avg_pool2d(nn.functional.pad(weight, even), 2) * 4
    mean = nn.functional.avg_pool2d(nn.functional.pad(x * weight, even), 2) * 4 / total.clamp(min=1e-6)
    coarse, present = fill_gaps(mean, total.clamp(max=1))
    smooth = nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :h, :w]
    return weight * x + (1 - weight) * smooth, present


class MaskedUNet(ResidualUNet):
    """Inpainting autoencoder: what is known of an image, per pixel and channel, to the whole image."""

    def __init__(self, channels: int = 3, widths: Sequence[int] = (32, 48, 64, 96), blocks: int | Sequence[int] = 2) -> None:
        super().__init__(2 * channels, channels, widths, blocks, fold=1)
        zero_init(self.tail)

    def encode(self, x_BCHW: Tensor, known_BCHW: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """(B,C,H,W) float in [0,1] whose gaps are filled by `push_pull`, and where it is known (all of it when absent)."""
        known = torch.ones_like(x_BCHW) if known_BCHW is None else known_BCHW
        return x_BCHW, self.contract(torch.cat([x_BCHW - 0.5, known], 1))

    def decode(self, y: tuple[Tensor, list[Tensor]]) -> Tensor:
        x, features = y
        return x + self.expand(features).to(x.dtype)

    def forward(self, x_BCHW: Tensor, known_BCHW: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x_BCHW, known_BCHW))
