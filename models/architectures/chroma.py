"""A U-Net that predicts chroma from luma, with a receptive field as large as a small image.

    luma ── unshuffle 4 ─ residual U-Net ─ shuffle 2 ─ bilinear ×2 ── Cb, Cr

Chroma is predicted at half the size, which costs a quarter and hardly changes the PSNR or the look of the result.
"""

from abc import abstractmethod

from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.layers import zero_init
from imagemill.models.residual_unet import ResidualUNet

UNSHUFFLE = 4


class ChromaNetwork(Autoencoder):
    """A network that maps luma (B,1,H,W) in [0,1] to Cb and Cr (B,2,H,W) in [-0.5,0.5].

    Attributes:
        prediction_pixels: a larger image is predicted from a copy of this size, in which whole objects can be recognised.
    """

    prediction_pixels: int

    def freeze(self) -> None:
        """Set `requires_grad` to False for weights that a training leaves unchanged; by default it changes all of them."""

    def colour(self, luma_B1HW: Tensor) -> Tensor:
        """Return the chroma (B,2,H,W) that a run paints; by default that with the lowest expected error, like `forward`."""
        chroma: Tensor = self(luma_B1HW)
        return chroma

    @abstractmethod
    def learn(self, luma_B1HW: Tensor, chroma_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted chroma (B,2,H,W), and a loss in addition to its error, a scalar.

        Args:
            luma_B1HW: the luma that the network gets.
            chroma_B2HW: the true chroma.
        """


class ChromaUNet(ResidualUNet, ChromaNetwork):
    """Map luma (B,1,H,W) in [0,1] to Cb and Cr (B,2,H,W) in [-0.5,0.5].

    Args:
        widths: channels of each level, finest first.
        blocks: residual blocks of each level.
    """

    example = (1, 256, 256)
    prediction_pixels = 512 * 512

    def __init__(self, widths: tuple[int, ...] = (24, 48, 72, 96), blocks: int = 2) -> None:
        super().__init__(UNSHUFFLE**2, 2, widths, blocks)
        zero_init(self.tail)
        self.stride, self.halo = 2 * self.stride, 2 * self.halo + 2 * self.stride

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map luma (B,1,H,W) to the features of each level, finest first."""
        return self.contract(nn.functional.pixel_unshuffle(x_BCHW - 0.5, UNSHUFFLE))

    def decode(self, y: list[Tensor]) -> Tensor:
        """Map features to chroma (B,2,H,W)."""
        return nn.functional.interpolate(self.expand(y).float(), scale_factor=2, mode="bilinear", align_corners=False)

    def learn(self, luma_B1HW: Tensor, chroma_B2HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted chroma and no further loss."""
        return self(luma_B1HW), luma_B1HW.new_zeros(())
