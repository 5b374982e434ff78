"""Blocks that more than one architecture uses."""

from torch import Tensor, nn


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps H and W (divided by `stride`)."""
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))): the residual block without normalisation of EDSR (Lim et al. 2017, fig. 2c).

    Without normalisation an output depends on its neighbourhood alone, so images can be cut into tiles.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels))
        nn.init.zeros_(self.body[2].weight)
        nn.init.zeros_(self.body[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
