"""A small residual U-Net that takes a noise-level map, after DRUNet (Zhang et al. 2021) and FFDNet (Zhang et al. 2018).

x ── unshuffle 2 ─┬─ head ─ [res]×n ─┬────────────────────────────(+)─ [res]×n ─ tail ─ shuffle 2 ─(+ x)─ x_hat
sigma map ────────┘                  └─ down ─ [res]×n ─ … ─ up ───┘
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.layers import ResBlock, conv3x3

MAX_SIGMA = 1.0


class NoiseLevel(nn.Module):
    """Blind noise level: a pixel-wise guess and a pixel-wise confidence, averaged over the image.

    A confidence lets flat areas speak and textured ones stay silent, as the patch selection of Liu et al. 2013 does.
    """

    def __init__(self, channels: int, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2, 1),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] to (B,) standard deviation of the noise, in the same units."""
        guess, confidence = self.body(x_BCHW).float().flatten(2).unbind(1)
        return (guess * confidence.softmax(1)).sum(1).clamp(0, MAX_SIGMA)


class UNet(Autoencoder):
    """Denoising autoencoder. `encode` gives the bottleneck and the skips, `decode` the residual-corrected image."""

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64, 96), blocks: int = 2) -> None:
        super().__init__()
        levels = len(widths)
        self.stride = 2**levels
        # Each 3×3 convolution reaches one pixel of its level: 2 for a block, 1 for a step between levels.
        reach = sum(2 ** (i + 1) * (2 * blocks * (2 if i < levels - 1 else 1) + 2) for i in range(levels)) + 8
        self.halo = -(-reach // self.stride) * self.stride
        self.noise_level = NoiseLevel(channels)
        self.head = conv3x3(4 * channels + 1, widths[0])
        self.encoder = nn.ModuleList(nn.Sequential(*(ResBlock(w) for _ in range(blocks))) for w in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(nn.Sequential(*(ResBlock(w) for _ in range(blocks))) for w in widths[:-1])
        self.tail = conv3x3(widths[0], 4 * channels)

    def encode(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Noisy (B,C,H,W) float in [0,1] and its noise level (B,), estimated where it is not given."""
        if sigma_B is None:
            sigma_B = self.noise_level(x_BCHW)
        z = nn.functional.pixel_unshuffle(x_BCHW, 2)
        sigma_map = sigma_B.to(z.dtype).view(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])
        z = self.head(torch.cat([z, sigma_map], 1))
        skips = [x_BCHW]
        for level, stage in enumerate(self.encoder):
            z = stage(z)
            if level < len(self.down):
                skips.append(z)
                z = self.down[level](z)
        return z, skips

    def decode(self, y: tuple[Tensor, list[Tensor]]) -> Tensor:
        z, skips = y
        for level in reversed(range(len(self.up))):
            z = self.decoder[level](self.up[level](z) + skips[level + 1])
        # The sum with the input stays in its precision: bf16 has too few bits for pixel values.
        return skips[0] + nn.functional.pixel_shuffle(self.tail(z), 2).to(skips[0].dtype)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x_BCHW, sigma_B))
