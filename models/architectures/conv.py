"""The convolutional autoencoder of docs/digits.md: 1→16→4 channels, two max-pools, upsampling + convolution, sigmoid.

It has exactly 1,477 parameters in layers of 160, 580, 592 and 145, also with transposed convolutions in the decoder.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import LatentCoder
from imagemill.models.layers import conv3x3


def upsample_layers(c_in: int, c_out: int, how: str) -> list[nn.Module]:
    """Return layers that double the size: nearest-neighbour upsampling and a convolution, or a transposed convolution."""
    if how == "transposed":
        return [nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1)]
    return [nn.Upsample(scale_factor=2, mode="nearest"), conv3x3(c_in, c_out)]


class Conv(LatentCoder):
    """Map gray images, such as 28×28 digits, to a code of 1/4 of the height and width, and back.

    The buffer `peak` is the largest value of each channel of the code in training (in averaged weights a moving average).
    Symbols divide the range from 0 to `peak` into 255 steps; larger values are clipped.

    Args:
        channels: colour planes of the images.
        width: channels of the hidden layers.
        code: channels of the code.
        upsample: "nearest" for upsampling and convolutions in the decoder, "transposed" for transposed convolutions.
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
        # One axis, because DistributedDataParallel cannot broadcast a single channels-last buffer with four axes.
        self.peak: Tensor
        self.register_buffer("peak", torch.full((code,), 1e-3))

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B,C,H,W) in [0,1] to the code (B,c,H/4,W/4), and update `peak` in training."""
        y: Tensor = self.encoder(x_BCHW)
        if self.training:
            self.peak.copy_(torch.maximum(self.peak, y.detach().amax((0, 2, 3))))
        return y

    def decode(self, y: Tensor) -> Tensor:
        """Map the code to images (B,C,H,W) in [0,1]."""
        x_hat: Tensor = self.decoder(y)
        return x_hat

    def encode_symbols(self, x_BCHW: Tensor, step_B: Tensor) -> Tensor:
        """Map images to symbols (B,c,H/4,W/4); the step is ignored."""
        return (self.encode(x_BCHW) / self.peak.view(-1, 1, 1)).clamp(0, 1).mul(255).round() - 128

    def decode_symbols(self, symbols_Bchw: Tensor, step_B: Tensor) -> Tensor:
        """Map symbols to images (B,C,H,W); the step is ignored."""
        return self.decode((symbols_Bchw + 128) / 255 * self.peak.view(-1, 1, 1))

    def dequantisation(self, step: float) -> tuple[Tensor, int]:
        """Return peak / 255, (c,), and -128, the symbol of the value 0; the step is ignored."""
        return self.peak / 255, -128

    def decode_preview(self, values_Bchw: Tensor) -> Tensor:
        """Decode values like `decode`, which is cheap."""
        return self.decode(values_Bchw)
