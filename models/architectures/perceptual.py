"""A plain network of VGG's shape whose layers say what is in an image and how it is painted, and a decoder that paints.

x ─ relu1_1 … pool ─ relu2_1 … pool ─ … ─ relu4_1
      └ skip ──────┐   └ skip ──────┐         │
x_hat ─ conv … ─ (+) ─ up ─ conv ─ (+) ─ up ─ conv
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.layers import zero_init
from imagemill.models.type_checks import require_value


def conv3x3_replicate(c_in: int, c_out: int) -> nn.Conv2d:
    """3×3, edges repeated: zeros would be a frame that style transfer paints. Begins as He et al. 2015 say for ReLU."""
    layer = nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="replicate")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(require_value(layer.bias, "the bias"))
    return layer


class Perceptual(Autoencoder):
    """Blocks of 3×3 convolutions with ReLU, average-pooled in between (smoother pictures than by maxima: Gatys et al. 2016).

    Layer `relu{b}_{c}` is what convolution c of block b gives, both counted from 1. The code is the first layer of each
    block, or of the last one alone: `perceive` does without the skips, so that the last layer learns to hold it all.

    Args: widths: channels of each block. convs: convolutions of each block. decoder: whether there is one.
        mean, std: of each colour, with which an image is normalised.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        convs: Sequence[int] = (1, 2, 2, 1),
        decoder: bool = True,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        if len(widths) != len(convs) or not all(widths) or not all(convs):
            raise ValueError(f"widths {list(widths)} and convs {list(convs)}: one of each, above 0, for every block")
        self.stride = 2 ** (len(widths) - 1)
        # Each convolution reaches one pixel of its level, the decoder as far as the encoder; pooling aligns to the stride.
        reach = 2 * sum(count * 2**level for level, count in enumerate(convs)) + 1 + self.stride
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
        """Names, from the image on."""
        return list(self.encoder)

    @property
    def first_layers(self) -> list[str]:
        """The first of each block, which style is measured in unless something else is asked for (as Gatys et al. did)."""
        return [name for name in self.layers if name.endswith("_1")]

    def features(self, x_BCHW: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Features (B,d,h,w) of the layers named, of images in [0,1]."""
        z, found = (x_BCHW - self.mean) / self.std, {}
        for name, convolution in self.encoder.items():
            if name.endswith("_1") and name != self.layers[0]:
                z = nn.functional.avg_pool2d(z, 2)
            z = convolution(z).relu()
            if name in layers:
                found[name] = z
                if len(found) == len(layers):
                    break
        return found

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """(B,3,H,W) in [0,1] to the first layer of each block, finest first, (B,d,H/2^b,W/2^b)."""
        return list(self.features(x_BCHW, self.first_layers).values())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images as the decoder gives them back; without one, the last of what `encode` sees."""
        return self.encode(x_BCHW)[-1] if self.decoder is None else super().forward(x_BCHW)

    def decode(self, y: Sequence[Tensor]) -> Tensor:
        """What `encode` gave, or the last of it alone, to images."""
        decoder, skips = require_value(self.decoder, "the decoder"), require_value(self.skips, "the decoder's skips")
        z = y[-1]
        for level in reversed(range(len(decoder))):
            if level < len(skips):
                z = nn.functional.interpolate(z, scale_factor=2, mode="nearest")
                z = z + skips[level](y[level]) if len(y) > 1 else z
            z = decoder[level](z)
        return z.float() * self.std + self.mean


def decoder_levels(widths: Sequence[int], convs: Sequence[int]) -> list[nn.Module]:
    """What the decoder does at each level, finest first: as many convolutions as the encoder; no ReLU on the image."""
    levels: list[nn.Module] = [
        nn.Sequential(conv3x3_replicate(widths[0], widths[0]), nn.ReLU(), conv3x3_replicate(widths[0], 3))
    ]
    for (finer, width), count in zip(pairwise(widths), convs[1:], strict=True):
        same = [layer for _ in range(count - 1) for layer in (conv3x3_replicate(width, width), nn.ReLU())]
        levels.append(nn.Sequential(*same, conv3x3_replicate(width, finer), nn.ReLU()))
    return levels
