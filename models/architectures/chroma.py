"""A U-Net from luma to chroma, deep enough to see the whole of a small picture.

luma ── unshuffle 4 ─ trunk ─ shuffle 2 ─ bilinear ×2 ── Cb, Cr

Chroma is predicted at half the size: eyes and PSNR hardly miss the rest, and the whole net costs a quarter.
"""

from torch import Tensor, nn

from imagemill.models.layers import zero_init
from imagemill.models.residual_unet import ResidualUNet

UNSHUFFLE = 4


class ChromaUNet(ResidualUNet):
    """Colorizing autoencoder: (B,1,H,W) luma in [0,1] to (B,2,H,W) Cb and Cr, in [-0.5,0.5]."""

    example = (1, 256, 256)

    def __init__(self, widths: tuple[int, ...] = (24, 48, 72, 96), blocks: int = 2) -> None:
        super().__init__(UNSHUFFLE**2, 2, widths, blocks)
        zero_init(self.tail)
        self.stride, self.halo = 2 * self.stride, 2 * self.halo + 2 * self.stride

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        return self.contract(nn.functional.pixel_unshuffle(x_BCHW - 0.5, UNSHUFFLE))

    def decode(self, y: list[Tensor]) -> Tensor:
        return nn.functional.interpolate(self.expand(y).float(), scale_factor=2, mode="bilinear", align_corners=False)
