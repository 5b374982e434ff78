"""A network like VGG, whose features measure the content and the style of an image, with a decoder for style transfer.

x ─ relu1_1 … pool ─ relu2_1 … pool ─ … ─ relu4_1
      └ skip ──────┐   └ skip ──────┐         │
x_hat ─ conv … ─ (+) ─ up ─ conv ─ (+) ─ up ─ conv
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.layers import zero_init
from imagemill.models.type_checks import require_value


def conv3x3_replicate(c_in: int, c_out: int) -> nn.Conv2d:
    """Return a 3×3 convolution with replicate padding, initialised for ReLU (He et al. 2015).

    Zero padding would make style transfer paint a frame.
    """
    layer = nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="replicate")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(require_value(layer.bias, "the bias"))
    return layer


class Perceptual(Autoencoder):
    """Blocks of 3×3 convolutions with ReLU, and average pooling between them, as Gatys et al. 2016 recommend.

    Layer `relu{b}_{c}` is the output of convolution c of block b, both counted from 1. The code consists of the first layer
    of each block. `perceive` decodes the last of them without skips, so that this layer learns to describe the whole image.

    Args:
        widths: channels of each block.
        convs: convolutions of each block.
        decoder: whether the network has a decoder.
        mean: mean of each colour, for the normalisation of images.
        std: standard deviation of each colour, for the normalisation of images.
        upsampling: how the decoder enlarges features. It turns the steps of "nearest" into ripples (docs/training-log.md).
        transform: what one pass gives the code: mean and deviation of each channel ("moments", AdaIN), or the mean and the
            covariance of all channels, after the texture of the style was added to flat regions ("covariance").
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        convs: Sequence[int] = (1, 2, 2, 1),
        decoder: bool = True,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        upsampling: Literal["nearest", "bilinear"] = "nearest",
        transform: Literal["moments", "covariance"] = "moments",
    ) -> None:
        super().__init__()
        if len(widths) != len(convs) or not all(widths) or not all(convs):
            raise ValueError(f"widths={list(widths)}, convs={list(convs)}: give one number above 0 of each for every block")
        self.stride = 2 ** (len(widths) - 1)
        self.upsampling, self.transform = upsampling, transform
        # A convolution reaches one pixel of its level, in encoder and decoder; pooling aligns to the stride.
        reach = 2 * sum(count * 2**level for level, count in enumerate(convs)) + 1 + self.stride
        # Bilinear upsampling reaches one pixel of the coarser level.
        reach += 2 * (self.stride - 1) if upsampling == "bilinear" else 0
        self.halo = -(-reach // self.stride) * self.stride
        self.convs = tuple(convs)
        inputs = (3, *widths)
        self.encoder = nn.ModuleDict(
            {
                f"relu{b}_{c}": conv3x3_replicate(inputs[b - 1] if c == 1 else width, width)
                for b, (width, count) in enumerate(zip(widths, convs, strict=True), 1)
                for c in range(1, count + 1)
            }
        )
        self.decoder = nn.ModuleList(decoder_levels(widths, convs)) if decoder else None
        self.skips = nn.ModuleList(zero_init(nn.Conv2d(width, width, 1)) for width in widths[:-1]) if decoder else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def layers(self) -> list[str]:
        """Names of the layers, first layer first."""
        return list(self.encoder)

    @property
    def first_layers(self) -> list[str]:
        """Names of the first layer of each block: the code, and the default layers of the style loss (Gatys et al. 2016)."""
        return [name for name in self.layers if name.endswith("_1")]

    def features(self, x_BCHW: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Return the features (B,d,h,w) of the named layers for images (B,3,H,W) in [0,1]."""
        z, features = (x_BCHW - self.mean) / self.std, {}
        for name, convolution in self.encoder.items():
            if name.endswith("_1") and name != self.layers[0]:
                z = nn.functional.avg_pool2d(z, 2)
            z = convolution(z).relu()
            if name in layers:
                features[name] = z
                if len(features) == len(layers):
                    break
        return features

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map images (B,3,H,W) in [0,1] to the first layer of each block, finest first."""
        return list(self.features(x_BCHW, self.first_layers).values())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return reconstructed images, or without a decoder the last layer of the code."""
        return self.encode(x_BCHW)[-1] if self.decoder is None else super().forward(x_BCHW)

    def decode(self, y: Sequence[Tensor]) -> Tensor:
        """Map the code, or a list of its last layer alone, to images (B,3,H,W)."""
        decoder, skips = require_value(self.decoder, "the decoder"), require_value(self.skips, "the decoder's skips")
        z = y[-1]
        for level in reversed(range(len(decoder))):
            if level < len(skips):
                z = self.enlarge(z)
                z = z + skips[level](y[level]) if len(y) > 1 else z
            z = decoder[level](z)
        return z.float() * self.std + self.mean

    def enlarge(self, z: Tensor) -> Tensor:
        """Double the height and width of features."""
        if self.upsampling == "nearest":
            return nn.functional.interpolate(z, scale_factor=2, mode="nearest")
        return nn.functional.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)


def decoder_levels(widths: Sequence[int], convs: Sequence[int]) -> list[nn.Module]:
    """Return the decoder's layers of each level, finest first: as many convolutions as in the encoder."""
    levels: list[nn.Module] = [
        nn.Sequential(conv3x3_replicate(widths[0], widths[0]), nn.ReLU(), conv3x3_replicate(widths[0], 3))
    ]
    for (finer, width), count in zip(pairwise(widths), convs[1:], strict=True):
        same = [layer for _ in range(count - 1) for layer in (conv3x3_replicate(width, width), nn.ReLU())]
        levels.append(nn.Sequential(*same, conv3x3_replicate(width, finer), nn.ReLU()))
    return levels
