"""A residual network for upscaling: EDSR (Lim et al. 2017) without its last convolution, added to a bicubic enlargement.

    x ─┬─ head ─┬─ [res]×n ─ body ─(+)─ tail ─ shuffle ×scale ─(+)─ x_hat
       │        └───────────────────┘                           │
       └─ bicubic ×scale ───────────────────────────────────────┘

All layers work at the small size, and a pixel shuffle enlarges the result (ESPCN, Shi et al. 2016). The network learns the
difference to bicubic interpolation (VDSR, Kim et al. 2016).
"""

from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.layers import ResBlock, conv3x3, zero_init
from imagemill.models.resizing import resize


class EDSR(Autoencoder):
    """Map images (B,channels,H,W) in [0,1] to (B,channels,scale·H,scale·W). Before training, the result is bicubic.

    Args:
        channels: colour planes of the images.
        width: channels of the hidden layers.
        blocks: residual blocks.
        scale: factor of height and width.
    """

    def __init__(self, channels: int = 3, width: int = 32, blocks: int = 8, scale: int = 2) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale={scale}: must be at least 1")
        self.scale = scale
        # One pixel for each 3×3 convolution, of which there are at least three; bicubic needs two pixels.
        self.halo = 2 * blocks + 3
        self.head = conv3x3(channels, width)
        self.body = nn.Sequential(*(ResBlock(width) for _ in range(blocks)), conv3x3(width, width))
        self.tail = zero_init(conv3x3(width, scale**2 * channels))

    def encode(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B,C,H,W) to the images themselves and their features (B,width,H,W)."""
        z = self.head(x_BCHW)
        return x_BCHW, z + self.body(z)

    def decode(self, y: tuple[Tensor, Tensor]) -> Tensor:
        """Map images and features to enlarged images (B,C,scale·H,scale·W), not clipped."""
        x, features = y
        detail = nn.functional.pixel_shuffle(self.tail(features), self.scale)
        # The sum keeps the dtype of the input, because bfloat16 has too few bits for pixel values.
        return resize(x, [n * self.scale for n in x.shape[2:]], "bicubic") + detail.to(x.dtype)
