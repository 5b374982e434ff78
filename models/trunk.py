"""The residual U-Net that restoring architectures share, after DRUNet (Zhang et al. 2021), without normalisation.

z ── head ─ [res]×n ─┬────────────────────────────(+)─ [res]×n ─ tail ── out
                     └─ down ─ [res]×n ─ … ─ up ───┘
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.layers import ResBlock, conv3x3


class Trunk(Autoencoder):
    """Maps features (B,head,H/2,W/2), as pixel-unshuffling gives them, to pixel-shuffled outputs (B,outputs,H,W)."""

    def __init__(self, head: int, outputs: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        levels = len(widths)
        self.stride = 2**levels
        # Each 3×3 convolution reaches one pixel of its level: 2 for a block, 1 for a step between levels.
        reach = sum(2 ** (i + 1) * (2 * blocks * (2 if i < levels - 1 else 1) + 2) for i in range(levels)) + 8
        self.halo = -(-reach // self.stride) * self.stride
        self.head = conv3x3(head, widths[0])
        self.encoder = nn.ModuleList(nn.Sequential(*(ResBlock(w) for _ in range(blocks))) for w in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(nn.Sequential(*(ResBlock(w) for _ in range(blocks))) for w in widths[:-1])
        self.tail = conv3x3(widths[0], 4 * outputs)

    def descend(self, z: Tensor) -> list[Tensor]:
        """Features of every level, finest first."""
        z = self.head(z)
        features = []
        for level, stage in enumerate(self.encoder):
            z = stage(z)
            features.append(z)
            if level < len(self.down):
                z = self.down[level](z)
        return features

    def ascend(self, features: list[Tensor]) -> Tensor:
        """What `descend` gave to (B,outputs,H,W)."""
        z = features[-1]
        for level in reversed(range(len(self.up))):
            z = self.decoder[level](self.up[level](z) + features[level])
        return nn.functional.pixel_shuffle(self.tail(z), 2)


def unshuffled(*planes: Tensor) -> Tensor:
    """Planes (B,C,H,W) side by side at half the size, (B,ΣC·4,H/2,W/2)."""
    return torch.cat([nn.functional.pixel_unshuffle(p, 2) for p in planes], 1)
