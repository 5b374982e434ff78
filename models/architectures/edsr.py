"""A residual network that enlarges: EDSR without its last convolution, added to a bicubic enlargement.

x ─┬─ head ─┬─ [res]×n ─ body ─(+)─ tail ─ shuffle ×scale ─(+)─ x_hat
   │        └───────────────────┘                           │
   └─ bicubic ×scale ───────────────────────────────────────┘

EDSR: Lim et al. 2017. All is computed at the small size, and the shuffle makes pixels of channels: ESPCN (Shi et al. 2016).
The network learns what bicubic leaves out: VDSR (Kim et al. 2016).
"""

from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.layers import ResBlock, conv3x3, zero_init
from imagemill.models.resizing import resize


class EDSR(Autoencoder):
    """Enlarging autoencoder: (B,channels,H,W) in [0,1] to (B,channels,scale·H,scale·W). Untrained it is bicubic."""

    def __init__(self, channels: int = 3, width: int = 32, blocks: int = 8, scale: int = 2) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale {scale}: 1 is the least")
        self.scale = scale
        # One pixel for each 3×3 convolution; bicubic looks at two, which the three that are always there reach.
        self.halo = 2 * blocks + 3
        self.head = conv3x3(channels, width)
        self.body = nn.Sequential(*(ResBlock(width) for _ in range(blocks)), conv3x3(width, width))
        self.tail = zero_init(conv3x3(width, scale**2 * channels))

    def encode(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W) float in [0,1] to itself and its features (B,width,H,W)."""
        z = self.head(x_BCHW)
        return x_BCHW, z + self.body(z)

    def decode(self, y: tuple[Tensor, Tensor]) -> Tensor:
        """What `encode` gave to (B,C,scale·H,scale·W) float, not clipped."""
        x, features = y
        detail = nn.functional.pixel_shuffle(self.tail(features), self.scale)
        # The sum stays in the precision of the input: bf16 has too few bits for pixel values.
        return resize(x, [n * self.scale for n in x.shape[2:]], "bicubic") + detail.to(x.dtype)
