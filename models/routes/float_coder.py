"""An autoencoder of another library whose latents are floats, called under the contract of its card."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.contract import Contract
from imagemill.models.resizing import limit_pixels
from imagemill.models.type_checks import require_value

Encode = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]
"""Encodes images (B,3,H,W) in the range of the module to latents (B,c,h,w), or to their mode and standard deviation."""
Decode = Callable[[nn.Module, Tensor], Tensor]
"""Decodes latents (B,c,h,w) to images (B,3,H,W) in the range of the module."""


class FloatCoder(Autoencoder):
    """Encode images to float latents, and decode them.

    Latents are those of the module, unscaled: a trainer subtracts shift_factor and multiplies by scaling_factor.

    Images and weights are in the order that libraries use. In the faster order channels_last, torch's group norm is less
    exact, so that latents of flat images would differ from those of the library by more than 1e-5.

    Args:
        module: the network itself, with its weights.
        contract: how it is called; with `latent`.
        encode_module: calls its encoder.
        decode_module: calls its decoder.
    """

    memory_format = torch.contiguous_format

    def __init__(self, module: nn.Module, contract: Contract, encode_module: Encode, decode_module: Decode) -> None:
        super().__init__()
        self.module, self.encode_module, self.decode_module = module, encode_module, decode_module
        self.contract = contract
        self.latent = require_value(contract.latent, "the contract of latents")
        self.factor, self.channels = self.latent.factor, contract.channels
        self.low, high = contract.input_range
        self.span = high - self.low
        self.stride, self.halo = contract.size_multiple, contract.halo
        self.min_side, self.tiling, self.dtypes = contract.min_side, contract.tiling, contract.dtypes
        self.bytes_per_pixel = contract.bytes_per_pixel
        side = -(-max(256, contract.min_side) // self.stride) * self.stride
        self.example = (3, side, side)

    def padded_side(self, side: int) -> int:
        """Return the side that the module gets for a side of an image, in pixels."""
        side = max(side, self.min_side)
        return side + -side % self.stride

    def encode(self, x_BCHW: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Encode images.

        Args:
            x_BCHW: images (B,C,H,W) float in [0,1].
            seeds: one for each image: draw from the distribution of each latent. Without seeds, latents are its mode.

        Returns:
            Latents (B,c,H/factor,W/factor) float.
        """
        return draw(*self.distribution(x_BCHW), seeds)

    def distribution(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mode of latents, (B,c,h,w), and their standard deviation or None, as `encode` draws from."""
        return self.encode_module(self.module, (x_BCHW * self.span + self.low).contiguous())

    def decode(self, y: Tensor) -> Tensor:
        """Decode latents (B,c,h,w) to images (B,C,H,W) float, nominally in [0,1], not clipped."""
        return (self.decode_module(self.module, y.contiguous()) - self.low) / self.span

    def decode_preview(self, values_Bchw: Tensor, side: int) -> Tensor:
        """Map latents (B,c,h,w) to a rough image (B,C,·,·) in [0,1], not clipped, of about side × side pixels.

        The decoder gets the means of neighbouring values, so that a thumbnail costs the same for images of every size.
        """
        return self.decode(limit_pixels(values_Bchw, side**2 // self.factor**2, self.stride // self.factor))


def draw(mode: Tensor, deviation: Tensor | None, seeds: Sequence[int] | None) -> Tensor:
    """Draw latents from their distributions.

    The noise is drawn on the CPU, image by image, so that it depends neither on the batch nor on the device.

    Args:
        mode: (B,c,h,w).
        deviation: (B,c,h,w); None for an encoder without a distribution.
        seeds: one for each image; None for the mode.

    Returns:
        Latents (B,c,h,w).
    """
    if seeds is None or deviation is None:
        return mode
    noise = [torch.randn(mode.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return mode + deviation * torch.stack(noise).to(mode)
