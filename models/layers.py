"""Blocks that more than one architecture uses."""

from torch import Tensor, nn


def conv3x3(c_in: int, c_out: int) -> nn.Conv2d:
    """3×3 convolution that keeps H and W."""
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def zero_init(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that begins as zero, so that the residual path around it begins as the identity."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))): the residual block without normalisation of EDSR (Lim et al. 2017, fig. 2c).

    Without normalisation an output depends on its neighbourhood alone, so images can be cut into tiles.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = zero_init(conv3x3(channels, channels))
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(inplace=True), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
