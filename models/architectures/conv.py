"""The convolutional autoencoder of the seed page: 1→16→4 channels, two max-pools, upsampling + convolution, sigmoid.

Exactly 1,477 parameters, in layers of 160, 580, 592 and 145.
"""

from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.layers import conv3x3


class Conv(Autoencoder):
    """28×28 gray digits to a 4×7×7 code and back; any size that 4 divides works."""

    stride = 4
    halo = 16

    def __init__(self, channels: int = 1, width: int = 16, code: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv3x3(channels, width), nn.ReLU(), nn.MaxPool2d(2), conv3x3(width, code), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv3x3(code, width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv3x3(width, channels),
            nn.Sigmoid(),
        )

    def encode(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.encoder(x_BCHW)
        return y

    def decode(self, y: Tensor) -> Tensor:
        x_hat: Tensor = self.decoder(y)
        return x_hat
