"""A U-Net from luma to chroma, deep enough to see the whole of a small picture.

luma ── unshuffle 2 ─ trunk ─ shuffle 2 ── Cb, Cr
"""

from torch import Tensor

from models.trunk import Trunk, unshuffled


class ChromaUNet(Trunk):
    """Colorizing autoencoder: (B,1,H,W) luma in [0,1] to (B,2,H,W) Cb and Cr, in [-0.5,0.5]."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 72, 96, 128), blocks: int = 1) -> None:
        super().__init__(4, 2, widths, blocks)

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        return self.descend(unshuffled(x_BCHW - 0.5))

    def decode(self, y: list[Tensor]) -> Tensor:
        return self.ascend(y).float()
