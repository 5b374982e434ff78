"""The residual U-Net of the restoration architectures: DRUNet (Zhang et al. 2021), which has no normalisation layers.

z ── head ─ [res]×n ─┬────────────────────────────(+)─ [res]×n ─ tail ── out
                     └─ down ─ [res]×n ─ … ─ up ───┘
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.layers import ResBlock, conv3x3, zero_init


class ResidualUNet(Autoencoder):
    """Map features (B,head,H/fold,W/fold) to outputs (B,outputs,H,W).

    Args:
        head: channels of the features.
        outputs: channels of the output.
        widths: channels of each level, finest first.
        blocks: residual blocks of each level, or one number for all levels.
        fold: 2 for pixel-unshuffled features, whose outputs are shuffled back, at a quarter of the cost; 1 for pixels.
    """

    def __init__(self, head: int, outputs: int, widths: Sequence[int], blocks: int | Sequence[int], fold: int = 2) -> None:
        super().__init__()
        levels = len(widths)
        counts = [blocks] * levels if isinstance(blocks, int) else blocks
        if len(counts) != levels:
            raise ValueError(f"blocks={list(counts)}: must be one number, or one for each of the {levels} widths")
        self.fold = fold
        self.stride = fold * 2 ** (levels - 1)
        # A 3×3 convolution reaches one pixel of its level: 2 for a block, 1 for a step between levels.
        reach = sum(fold * 2**i * (2 * n * (2 if i < levels - 1 else 1) + 2) for i, n in enumerate(counts)) + 4 * fold
        self.halo = -(-reach // self.stride) * self.stride
        self.head = conv3x3(head, widths[0])
        self.encoder = nn.ModuleList(residual_blocks(w, n) for w, n in zip(widths, counts, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        # A level starts without effect, like a residual block, so that a trained network can be trained on with more levels.
        self.up = nn.ModuleList(zero_init(nn.ConvTranspose2d(b, a, 2, stride=2)) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(residual_blocks(w, n) for w, n in zip(widths[:-1], counts[:-1], strict=True))
        self.tail = conv3x3(widths[0], fold**2 * outputs)

    def contract(self, z: Tensor) -> list[Tensor]:
        """Run the contracting path; return the features of each level, finest first."""
        z = self.head(z)
        features = []
        for level, stage in enumerate(self.encoder):
            z = stage(z)
            features.append(z)
            if level < len(self.down):
                z = self.down[level](z)
        return features

    def expand(self, features: list[Tensor]) -> Tensor:
        """Run the expanding path on the features of `contract`; return outputs (B,outputs,H,W)."""
        z = features[-1]
        for level in reversed(range(len(self.up))):
            z = self.decoder[level](self.up[level](z) + features[level])
        return nn.functional.pixel_shuffle(self.tail(z), self.fold)


def residual_blocks(width: int, blocks: int) -> nn.Sequential:
    """Return a sequence of residual blocks."""
    return nn.Sequential(*(ResBlock(width) for _ in range(blocks)))
