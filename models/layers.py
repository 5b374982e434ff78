"""Layers that several architectures use."""

from typing import TypeVar

from torch import Tensor, nn

Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)


def conv3x3(c_in: int, c_out: int) -> nn.Conv2d:
    """Return a 3×3 convolution that keeps height and width."""
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def zero_init(conv: Convolution) -> Convolution:
    """Set all parameters of a convolution to 0, so that the residual branch it ends starts as the identity."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ResBlock(nn.Module):
    """The residual block of EDSR, x + conv(relu(conv(x))), without normalisation (Lim et al. 2017, fig. 2c).

    Without normalisation, an output depends only on a neighbourhood of its pixel, so that images can be cut into tiles.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = zero_init(conv3x3(channels, channels))
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(inplace=True), last)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B,channels,H,W) to features of the same shape."""
        return x + self.body(x)
