"""A small residual U-Net that takes a noise-level map, after DRUNet (Zhang et al. 2021) and FFDNet (Zhang et al. 2018).

x ── unshuffle 2 ─┬─ trunk ─ shuffle 2 ─(+ x)─ x_hat
sigma map ────────┘
"""

import torch
from torch import Tensor, nn

from imagemill.models.residual_unet import ResidualUNet

MAX_SIGMA = 1.0
RECEPTION = 4
"""Pixels on each side that a guess at the noise level depends on."""


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

    def forward(self, x_BCHW: Tensor, hidden_B1HW: Tensor | None = None) -> Tensor:
        """Estimate the noise of images (B,C,H,W) in [0,1].

        Args:
            hidden_B1HW: (B,1,H,W), 1 at pixels that say nothing about the noise, else 0. Guesses that depend on one are left
                out.

        Returns: (B,) standard deviation in the units of x; NaN for an image of which nothing can be seen.
        """
        guess, confidence = self.body(x_BCHW).float().flatten(2).unbind(1)
        if hidden_B1HW is not None:
            sees = nn.functional.max_pool2d(hidden_B1HW.float(), 2 * RECEPTION + 1, stride=2, padding=RECEPTION)
            confidence = confidence.masked_fill(sees.flatten(1) > 0, -torch.inf)
        return (guess * confidence.softmax(1)).sum(1).clamp(0, MAX_SIGMA)


class UNet(ResidualUNet):
    """Denoising autoencoder. `encode` gives the input and the features of each level, `decode` the corrected image."""

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64, 96), blocks: int = 2) -> None:
        super().__init__(4 * channels + 1, channels, widths, blocks)
        self.noise_level = NoiseLevel(channels)

    def encode(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Noisy (B,C,H,W) float in [0,1] and its noise level (B,), estimated where it is not given."""
        if sigma_B is None:
            sigma_B = self.noise_level(x_BCHW)
        z = nn.functional.pixel_unshuffle(x_BCHW, 2)
        sigma_map = sigma_B.to(z.dtype).view(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])
        return x_BCHW, self.contract(torch.cat([z, sigma_map], 1))

    def decode(self, y: tuple[Tensor, list[Tensor]]) -> Tensor:
        x, features = y
        # The sum with the input stays in its precision: bf16 has too few bits for pixel values.
        return x + self.expand(features).to(x.dtype)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x_BCHW, sigma_B))
