"""An autoencoder of another library whose latents are floats, called under the contract of its card."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.contract import Contract
from imagemill.models.type_checks import require_value

Encode = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]
"""Encodes images (B,3,H,W) in the range of the module to latents (B,c,h,w), or to their mode and standard deviation."""
Decode = Callable[[nn.Module, Tensor], Tensor]
"""Decodes latents (B,c,h,w) to images (B,3,H,W) in the range of the module."""


class FloatCoder(Autoencoder):
    """Encode images to float latents, and decode them.

    Latents are those of the module, unscaled: a trainer subtracts shift_factor and multiplies by scaling_factor.

    Args:
        module: the network itself, with its weights.
        contract: how it is called; with `latent`.
        encode_module: calls its encoder.
        decode_module: calls its decoder.
    """

    def __init__(self, module: nn.Module, contract: Contract, encode_module: Encode, decode_module: Decode) -> None:
        super().__init__()
        self.module, self.encode_module, self.decode_module = module, encode_module, decode_module
        self.contract = contract
        self.latent = require_value(contract.latent, "the contract of latents")
        self.low, high = contract.input_range
        self.span = high - self.low
        self.stride, self.halo = contract.size_multiple, contract.halo
        self.min_side, self.tiling, self.dtypes = contract.min_side, contract.tiling, contract.dtypes

    def encode(self, x_BCHW: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Encode images.

        Args:
            x_BCHW: images (B,3,H,W) float in [0,1].
            seeds: one for each image: draw from the distribution of each latent. Without seeds, latents are its mode.

        Returns:
            Latents (B,c,H/factor,W/factor) float.
        """
        mode, deviation = self.encode_module(self.module, x_BCHW * self.span + self.low)
        if seeds is None or deviation is None:
            return mode
        # Drawn on the CPU, image by image, so that the noise depends neither on the batch nor on the device.
        noise = [torch.randn(mode.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return mode + deviation * torch.stack(noise).to(mode)

    def decode(self, y: Tensor) -> Tensor:
        """Decode latents (B,c,h,w) to images (B,3,H,W) float, nominally in [0,1], not clipped."""
        return (self.decode_module(self.module, y) - self.low) / self.span
