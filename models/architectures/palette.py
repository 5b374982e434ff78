"""A network that predicts for each pixel how likely each colour of a palette is, from features learned on ImageNet.

    luma ── EfficientNet-Lite0 ─┬─ 1/4 ───────────── 1×1 ─(+)─ [res]×n ─ 1×1 ── probabilities ── mean colour
                                ├─ 1/8 ──────── 1×1 ─(+)─ [res]×n ─ up ┘
                                ├─ 1/16 ── 1×1 ─(+)─ [res]×n ─ up ┘
                                └─ 1/32 ─ 1×1 ─ up ┘

A gray photo leaves its colours open, and their mean is gray. A distribution tells apart what is certain, such as grass, from
what is not, such as a shirt (Zhang et al. 2016, "Colorful image colorization").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imagemill.models.architectures.chroma import ChromaNetwork
from imagemill.models.efficientnet import EfficientNetLite
from imagemill.models.layers import zero_init
from imagemill.models.residual_unet import residual_blocks

FINEST = 1
"""Index of the finest features that the decoder uses: those at 1/4 of the size."""
SIDE = 11
"""Colours of the palette for each of Cb and Cr."""
EXPONENT = 1.6
"""Colours are denser near gray: level u in [-1,1] has the chroma 0.5·|u|^EXPONENT."""
TEMPERATURE, SATURATION = 1.8, 1.4
"""How runs choose colours: from a flatter distribution, whose mean has fewer wrong hues, with the chroma multiplied, so that
photos become as lively as with the mean itself. docs/training-log.md has the figures."""
GRAY_WEIGHT = 0.06
"""Chroma at which a pixel counts twice as much in the loss as a gray pixel."""


class PaletteNet(ChromaNetwork):
    """Map luma (B,1,H,W) in [0,1] to Cb and Cr (B,2,H,W) in [-0.5,0.5].

    Args:
        widths: channels of the decoder at 1/4, 1/8 and 1/16 of the size.
        blocks: residual blocks of the decoder at each size.
        frozen: number of stages of the encoder, first stages first, that a training leaves unchanged.
        dropout: share of the features of the encoder that a training step hides from the decoder.
    """

    example = (1, 256, 256)
    prediction_pixels = 352 * 352

    def __init__(
        self,
        widths: Sequence[int] = (48, 72, 112),
        blocks: int = 1,
        frozen: int = 0,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.encoder = EfficientNetLite()
        self.dropout = nn.Dropout2d(dropout)
        self.lateral = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(self.encoder.widths[FINEST:], [*widths, widths[-1]], strict=True)
        )
        self.decoder = nn.ModuleList(residual_blocks(width, blocks) for width in widths)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip([*widths[1:], widths[-1]], widths, strict=True))
        self.head = zero_init(nn.Conv2d(widths[0], SIDE**2, 1))
        self.stride = 2 ** len(self.encoder.widths)
        # Bilinear enlargement reaches one pixel of the coarser size, a block two pixels of its size.
        reach = self.encoder.reach + sum(2 ** (FINEST + level + 1) * (2 * blocks + 2) for level in range(len(widths))) + 4
        self.halo = -(-reach // self.stride) * self.stride
        levels = torch.linspace(-1, 1, SIDE)
        chroma = 0.5 * levels.sign() * levels.abs() ** EXPONENT
        self.colours: Tensor
        self.register_buffer("colours", torch.cartesian_prod(chroma, chroma).T.contiguous(), persistent=False)

    def freeze(self) -> None:
        """Freeze the first stages of the encoder."""
        if self.frozen:
            self.encoder.stem.requires_grad_(False)
            self.encoder.stages[: self.frozen].requires_grad_(False)

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map luma (B,1,H,W) to features at 1/4, 1/8, 1/16 and 1/32 of the size."""
        return self.encoder(x_BCHW)[FINEST:]

    def classify(self, y: Sequence[Tensor]) -> Tensor:
        """Map features to the logits (B,SIDE²,H/4,W/4) of the colours of the palette; Cb is the outer index."""
        *finer, coarsest = (lateral(self.dropout(features)) for lateral, features in zip(self.lateral, y, strict=True))
        z = coarsest
        for level in reversed(range(len(finer))):
            z = enlarge(self.up[level](z), 2) + finer[level]
            z = self.decoder[level](z)
        return self.head(z.relu()).float()

    def mean_colour(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the mean chroma (B,2,h,w) of the distributions of `classify`.

        Args:
            logits: (B,SIDE²,h,w).
            temperature: 1 for the colour with the lowest expected squared error; lower values prefer the most likely colour
                ("annealed mean"), higher values gray.
        """
        share = (logits / temperature).permute(0, 2, 3, 1).softmax(-1)
        return (share @ self.colours.T).permute(0, 3, 1, 2)

    def decode(self, y: Sequence[Tensor]) -> Tensor:
        """Map features to the mean chroma (B,2,H,W)."""
        return enlarge(self.mean_colour(self.classify(y), 1.0), 4)

    def colour(self, luma_B1HW: Tensor) -> Tensor:
        """Return the chroma (B,2,H,W) that a run paints."""
        return enlarge(SATURATION * self.mean_colour(self.classify(self.encode(luma_B1HW)), TEMPERATURE), 4)

    def learn(self, luma_B1HW: Tensor, chroma_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean chroma, and the cross-entropy of the palette, in which colourful pixels weigh more."""
        logits = self.classify(self.encode(luma_B1HW))
        small = nn.functional.avg_pool2d(chroma_B2HW, 4)
        weight = 1 + small.square().sum(1).sqrt() / GRAY_WEIGHT
        entropy = (self.cross_entropy(logits, small) * weight).sum() / weight.sum()
        return enlarge(self.mean_colour(logits, 1.0), 4), entropy

    def cross_entropy(self, logits: Tensor, chroma_B2hw: Tensor) -> Tensor:
        """Return the cross-entropy (B,h,w) of distributions with colours; a colour is shared by its four neighbours."""
        position = (chroma_B2hw.sign() * (2 * chroma_B2hw.abs()) ** (1 / EXPONENT) + 1) * (SIDE - 1) / 2
        low = position.floor().clamp(0, SIDE - 2)
        (low_cb, low_cr), (up_cb, up_cr) = low.long().unbind(1), (position - low).clamp(0, 1).unbind(1)
        neighbours = [
            ((low_cb + i) * SIDE + low_cr + j, (up_cb if i else 1 - up_cb) * (up_cr if j else 1 - up_cr))
            for i in (0, 1)
            for j in (0, 1)
        ]
        index = torch.stack([each for each, _ in neighbours], 1)
        share = torch.stack([each for _, each in neighbours], 1)
        return -(share * logits.log_softmax(1).gather(1, index)).sum(1)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge maps (B,C,h,w) by a factor, bilinearly."""
    return nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
