"""A U-Net that fills missing parts of an image: holes and whole colour planes.

    x · known ── push-pull fill ─┬─ residual U-Net ─(+ fill)─ x_hat
    known ───────────────────────┘

The finest level works on pixels. After a pixel unshuffle, the neighbours of a lost pixel would be different channels for
each position in a 2×2 square, so that the network would have to learn one function four times.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imagemill.models.layers import zero_init
from imagemill.models.residual_unet import ResidualUNet


def push_pull(x_BCHW: Tensor, known_BCHW: Tensor) -> Tensor:
    """Interpolate unknown values from known ones over a pyramid (Gortler et al. 1996, section 3.4.2).

    A channel without a known value gets the mean of the other channels; an image without a known value becomes 0.5.

    Args:
        x_BCHW: float.
        known_BCHW: 1 where x is known, else 0.

    Returns:
        The filled images (B,C,H,W), whose known values are unchanged.
    """
    filled, weight = fill_gaps(x_BCHW * known_BCHW, known_BCHW)
    present = (weight > 0).to(x_BCHW.dtype)
    others = (filled * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    others = torch.where(present.sum(1, keepdim=True) > 0, others, 0.5)
    filled = torch.where(present > 0, filled, others)
    return torch.where(known_BCHW > 0, x_BCHW, filled)


def fill_gaps(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fill gaps of x, which is 0 where its weight is 0, from coarser levels; also return the weight of the coarsest one."""
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
    """Map images with known and unknown values to complete images.

    Args:
        channels: colour planes of the images.
        widths: channels of each level, finest first.
        blocks: residual blocks of each level, or one number for all levels.
    """

    def __init__(self, channels: int = 3, widths: Sequence[int] = (32, 48, 64, 96), blocks: int | Sequence[int] = 2) -> None:
        super().__init__(2 * channels, channels, widths, blocks, fold=1)
        zero_init(self.tail)

    def encode(self, x_BCHW: Tensor, known_BCHW: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Map images (B,C,H,W) in [0,1], filled by `push_pull`, and their known values (B,C,H,W), all when absent."""
        known = torch.ones_like(x_BCHW) if known_BCHW is None else known_BCHW
        return x_BCHW, self.contract(torch.cat([x_BCHW - 0.5, known], 1))

    def decode(self, y: tuple[Tensor, list[Tensor]]) -> Tensor:
        """Add the correction of the network to the filled images."""
        x, features = y
        return x + self.expand(features).to(x.dtype)

    def forward(self, x_BCHW: Tensor, known_BCHW: Tensor | None = None) -> Tensor:
        """Complete images (B,C,H,W) in [0,1] that `push_pull` filled."""
        return self.decode(self.encode(x_BCHW, known_BCHW))
