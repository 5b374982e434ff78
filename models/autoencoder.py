"""The one contract of every network here: `y = encode(x)`, `x_hat = decode(y)`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from imagemill.models.entropy import EntropyModel


class Autoencoder(nn.Module, ABC):
    """A network that maps images to a code and back.

    Attributes:
        stride: height and width of an input must be multiples of it (pixels).
        halo: a multiple of `stride`, at least the distance (pixels) over which an output depends on the input.
            Tiles cut with this overlap give the same result as the whole image.
        scale: height and width of an output, divided by those of its input.
        example: (C,H,W) of an input that suits it, for a listing of its layers.
    """

    stride: int = 1
    halo: int = 0
    scale: int = 1
    example: tuple[int, int, int] = (3, 256, 256)

    @abstractmethod
    def encode(self, x_BCHW: Tensor) -> Any:
        """(B,C,H,W) float in [0,1] to the code y, whose type the architecture defines."""

    @abstractmethod
    def decode(self, y: Any) -> Tensor:
        """The code y to (B,C,scale·H,scale·W) float, nominally in [0,1] but not clipped."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.decode(self.encode(x_BCHW))

    @property
    def output_stride(self) -> int:
        """Height and width of an output are multiples of it, and so are those of the clean images that it learns from."""
        return self.stride * self.scale


class LatentCoder(Autoencoder):
    """An autoencoder whose code can be stored as small integers, one `step` for each image where it has a rate to choose."""

    channels: int = 3
    """Planes of the images that it takes: 3 are RGB, 1 is luma."""
    lowpass_channels: Sequence[int]
    """Channels of its code that are the image at a small size, luma first where it is told apart."""
    texture_channels: Sequence[int]
    """Channels whose magnitude says how rough the image is, and in which direction."""
    entropy: EntropyModel | None
    """The integers with which its code can be entropy coded, once they are fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("entropy", None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights with or without an entropy model; what is loaded decides."""
        tables = {k.removeprefix("entropy."): v for k, v in state_dict.items() if k.startswith("entropy.")}
        self.entropy = EntropyModel(**tables) if tables else None
        return super().load_state_dict(state_dict, strict, assign)

    @abstractmethod
    def encode_symbols(self, x_BCHW: Tensor, step_B: Tensor) -> Tensor:
        """(B,C,H,W) float in [0,1] to whole numbers in [-128,127], (B,c,H/s,W/s) float32."""

    @abstractmethod
    def decode_symbols(self, symbols_Bchw: Tensor, step_B: Tensor) -> Tensor:
        """What `symbols` gave to (B,C,H,W) float32, nominally in [0,1] but not clipped."""

    @abstractmethod
    def dequantisation(self, step: float) -> tuple[Tensor, int]:
        """What symbols stand for: value = (symbol − zero) · width of its channel.

        Returns: width (c,) float32, all above 0, and zero, the symbol of the value 0.
        """

    @abstractmethod
    def decode_preview(self, values_Bchw: Tensor) -> Tensor:
        """What the code's values stand for at little cost, for a thumbnail: (B,C,·,·) in [0,1], not clipped."""
