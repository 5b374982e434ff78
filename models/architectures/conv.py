"""The convolutional autoencoder of the seed page: 1→16→4 channels, two max-pools, upsampling + convolution, sigmoid.

Exactly 1,477 parameters, in layers of 160, 580, 592 and 145; with transposed convolutions in the decoder as well.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import LatentCoder
from imagemill.models.layers import conv3x3


def upsample_layers(c_in: int, c_out: int, how: str) -> list[nn.Module]:
    """Twice the size, by nearest neighbours and a 3×3 convolution, or by one 3×3 transposed convolution."""
    if how == "transposed":
        return [nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1)]
    return [nn.Upsample(scale_factor=2, mode="nearest"), conv3x3(c_in, c_out)]


class Conv(LatentCoder):
    """28×28 gray digits to a 4×7×7 code and back; any size that 4 divides works.

    `peak` is the largest value that each channel of the code took in training, in averaged weights a moving average of that:
    as integers, a code runs from 0 to it in 255 steps, and is cut there.
    """

    stride = 4
    halo = 16

    def __init__(
        self, channels: int = 1, width: int = 16, code: int = 4, upsample: Literal["nearest", "transposed"] = "nearest"
    ) -> None:
        super().__init__()
        self.channels = channels
        self.lowpass_channels = self.texture_channels = range(code)
        self.example = (channels, 28, 28)
        self.encoder = nn.Sequential(
            conv3x3(channels, width), nn.ReLU(), nn.MaxPool2d(2), conv3x3(width, code), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.decoder = nn.Sequential(
            *upsample_layers(code, width, upsample), nn.ReLU(), *upsample_layers(width, channels, upsample), nn.Sigmoid()
        )
        # One axis: DDP cannot broadcast a buffer of four when it is the only one and lies channels last.
        self.peak: Tensor
        self.register_buffer("peak", torch.full((code,), 1e-3))

    def encode(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.encoder(x_BCHW)
        if self.training:
            self.peak.copy_(torch.maximum(self.peak, y.detach().amax((0, 2, 3))))
        return y

    def decode(self, y: Tensor) -> Tensor:
        x_hat: Tensor = self.decoder(y)
        return x_hat

    def encode_symbols(self, x_BCHW: Tensor, step_B: Tensor) -> Tensor:
        return (self.encode(x_BCHW) / self.peak.view(-1, 1, 1)).clamp(0, 1).mul(255).round() - 128

    def decode_symbols(self, symbols_Bchw: Tensor, step_B: Tensor) -> Tensor:
        return self.decode((symbols_Bchw + 128) / 255 * self.peak.view(-1, 1, 1))

    def dequantisation(self, step: float) -> tuple[Tensor, int]:
        return self.peak / 255, -128

    def decode_preview(self, values_Bchw: Tensor) -> Tensor:
        return self.decode(values_Bchw)
