"""A small residual U-Net with a noise-level map, after DRUNet (Zhang et al. 2021) and FFDNet (Zhang et al. 2018).

x ── unshuffle 2 ─┬─ residual U-Net ─ shuffle 2 ─(+ x)─ x_hat
sigma map ────────┘
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from imagemill.models.residual_unet import ResidualUNet

MAX_SIGMA = 1.0
RECEPTIVE_RADIUS = 4
"""Pixels on each side that an estimate of the noise level depends on."""


class NoiseLevel(nn.Module):
    """Estimate the noise level: an estimate and a confidence for each pixel, averaged over the image.

    The confidence selects flat areas and ignores textured ones, like the patch selection of Liu et al. 2013.

    Args:
        channels: colour planes of the images.
        width: channels of the hidden layers.
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

    def forward(self, x_BCHW: Tensor, hidden_B1HW: Tensor | None = None) -> Tensor:
        """Estimate the noise of images (B,C,H,W) in [0,1].

        Args:
            x_BCHW: images.
            hidden_B1HW: 1 at pixels without noise, else 0. Estimates that depend on such a pixel are ignored.

        Returns:
            Standard deviations (B,) in the units of x; NaN for an image without an estimate.
        """
        estimate, confidence = self.body(x_BCHW).float().flatten(2).unbind(1)
        if hidden_B1HW is not None:
            size = 2 * RECEPTIVE_RADIUS + 1
            depends = nn.functional.max_pool2d(hidden_B1HW.float(), size, stride=2, padding=RECEPTIVE_RADIUS)
            confidence = confidence.masked_fill(depends.flatten(1) > 0, -torch.inf)
        return (estimate * confidence.softmax(1)).sum(1).clamp(0, MAX_SIGMA)


class UNet(ResidualUNet):
    """A denoiser: `encode` returns the noisy images and the features of each level, `decode` the clean images.

    Args:
        channels: colour planes of the images.
        widths: channels of each level, finest first.
        blocks: residual blocks of each level, or one number for all levels.
        noise: the noise that it is trained for: Gaussian noise, or that of photographs (photo_noise.py).
    """

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, ...] = (32, 64, 96),
        blocks: int | Sequence[int] = 2,
        noise: Literal["gaussian", "photo"] = "gaussian",
    ) -> None:
        super().__init__(4 * channels + 1, channels, widths, blocks)
        if noise not in ("gaussian", "photo"):
            raise ValueError(f"noise={noise!r}: must be gaussian or photo")
        self.noise = noise
        self.noise_level = NoiseLevel(channels)

    def encode(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Map noisy images (B,C,H,W) in [0,1] and their noise levels (B,), which are estimated when absent."""
        if sigma_B is None:
            sigma_B = self.noise_level(x_BCHW)
        z = nn.functional.pixel_unshuffle(x_BCHW, 2)
        sigma_map = sigma_B.to(z.dtype).view(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])
        return x_BCHW, self.contract(torch.cat([z, sigma_map], 1))

    def decode(self, y: tuple[Tensor, list[Tensor]]) -> Tensor:
        """Add the correction of the network to the noisy images."""
        x, features = y
        # The sum keeps the dtype of the input, because bfloat16 has too few bits for pixel values.
        return x + self.expand(features).to(x.dtype)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> Tensor:
        """Denoise images (B,C,H,W) in [0,1] at noise levels (B,), which are estimated when absent."""
        return self.decode(self.encode(x_BCHW, sigma_B))
