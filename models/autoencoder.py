"""The interfaces of all networks: images to images, and autoencoders with `y = encode(x)`, `x_hat = decode(y)`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imagemill.models.contract import Tiling
from imagemill.models.entropy import EntropyModel


class Network(nn.Module):
    """A network that maps images to images.

    Attributes:
        channels: colour planes of the images: 3 for RGB, 1 for luma or a single plane.
        stride: height and width of an input must be multiples of `stride` (pixels).
        halo: overlap of tiles in input pixels, a multiple of `stride`. If `tiling` is exact, an output pixel depends on no
            input further away, so that tiles with this overlap give the same result as the whole image.
        scale: height and width of an output divided by those of its input.
        min_side: smallest height and width of an input (pixels).
        tiling: whether and how a large image may be cut into tiles, see `contract.Contract`.
        dtypes: number formats that the network may run in.
        example: (C,H,W) of an input, used to list the layers.
        memory_format: order of images and weights in memory.
    """

    channels: int = 3
    stride: int = 1
    halo: int = 0
    scale: int = 1
    min_side: int = 1
    tiling: Tiling = "exact"
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16")
    example: tuple[int, int, int] = (3, 256, 256)
    memory_format: torch.memory_format = torch.channels_last

    @property
    def output_stride(self) -> int:
        """Height and width of outputs, and of the clean images for training, are multiples of this (pixels)."""
        return self.stride * self.scale


class Autoencoder(Network, ABC):
    """A network that maps images to a code and back."""

    @abstractmethod
    def encode(self, x_BCHW: Tensor) -> Any:
        """Map images (B,C,H,W) float in [0,1] to the code y, whose type the architecture defines."""

    @abstractmethod
    def decode(self, y: Any) -> Tensor:
        """Map the code y to images (B,C,scale·H,scale·W) float, nominally in [0,1], not clipped."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return `decode(encode(x))`."""
        return self.decode(self.encode(x_BCHW))


class LatentCoder(Autoencoder):
    """An autoencoder whose code can be quantised to 8-bit symbols.

    Networks with a variable rate quantise with one `step` for each image, in 8-bit levels; others ignore it.

    Attributes:
        lowpass_channels: channels of the code that are the image at a small size, luma first if luma is a channel.
        texture_channels: channels whose magnitude measures the roughness of the image in some direction and frequency.
        entropy: the tables for entropy coding; None until they are fitted.
    """

    lowpass_channels: Sequence[int]
    texture_channels: Sequence[int]
    entropy: EntropyModel | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module("entropy", None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights with or without entropy tables."""
        tables = {k.removeprefix("entropy."): v for k, v in state_dict.items() if k.startswith("entropy.")}
        self.entropy = EntropyModel(**tables) if tables else None
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def factor(self) -> int:
        """Pixels of an image for each symbol, in each direction."""
        return self.stride

    @abstractmethod
    def encode_symbols(self, x_BCHW: Tensor, step_B: Tensor) -> Tensor:
        """Map images (B,C,H,W) float in [0,1] to symbols (B,c,H/stride,W/stride), float32 integers in [-128,127]."""

    @abstractmethod
    def decode_symbols(self, symbols_Bchw: Tensor, step_B: Tensor) -> Tensor:
        """Map symbols to images (B,C,H,W) float32, nominally in [0,1], not clipped."""

    @abstractmethod
    def dequantisation(self, step: float) -> tuple[Tensor, int]:
        """Return the parameters of value = (symbol - zero) · width.

        Returns:
            The width of each channel, (c,) float32 above 0, and zero, the symbol of the value 0.
        """

    @abstractmethod
    def decode_preview(self, values_Bchw: Tensor) -> Tensor:
        """Map dequantised values to a rough image (B,C,·,·) in [0,1], not clipped, at low cost, for thumbnails."""
