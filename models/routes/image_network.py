"""A network of another library that maps images to images, called under the contract of its card."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import Network
from imagemill.models.contract import Contract

Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Calls a module with images (B,channels,H,W) in its own range, and with the noise levels (B,) if it takes them."""


def call_module(module: nn.Module, x_BCHW: Tensor, sigma_B: Tensor | None) -> Tensor:
    """Call `module(x)`, or `module(x, sigma)` with noise levels (B,)."""
    result: Tensor = module(x_BCHW) if sigma_B is None else module(x_BCHW, sigma_B)
    return result


class ImageNetwork(Network):
    """Map images (B,3,H,W) float in [0,1] to images (B,3,scale·H,scale·W), nominally in [0,1], not clipped.

    A network of one channel processes each colour plane by itself. Of a gray image it processes one plane.

    Args:
        module: the network itself, with its weights.
        contract: how it is called.
        call: calls the module.
    """

    def __init__(self, module: nn.Module, contract: Contract, call: Call = call_module) -> None:
        super().__init__()
        self.module, self.call, self.contract = module, call, contract
        self.low, high = contract.input_range
        self.span = high - self.low
        self.planes, self.takes_noise_level = contract.channels, contract.noise_level
        self.stride, self.halo, self.scale = contract.size_multiple, contract.halo, contract.scale
        self.min_side, self.tiling, self.dtypes = contract.min_side, contract.tiling, contract.dtypes
        side = -(-max(256, contract.min_side) // self.stride) * self.stride
        self.example = (3, side, side)

    def forward(self, x_B3HW: Tensor, sigma_B: Tensor | None = None) -> Tensor:
        """Process images.

        Args:
            x_B3HW: images (B,3,H,W) float in [0,1].
            sigma_B: noise levels (B,) as standard deviations of values in [0,1], for a network that takes them.
        """
        x = x_B3HW * self.span + self.low if (self.low, self.span) != (0.0, 1.0) else x_B3HW
        if self.planes == 3:
            y = self.call(self.module, x, sigma_B)
        else:
            gray = torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])
            planes = x[:, :1] if gray else x.reshape(-1, 1, *x.shape[2:])
            if sigma_B is not None and not gray:
                sigma_B = sigma_B.repeat_interleave(3)
            y = self.call(self.module, planes, sigma_B)
            y = y.expand(-1, 3, -1, -1) if gray else y.reshape(-1, 3, *y.shape[2:])
        return (y - self.low) / self.span if (self.low, self.span) != (0.0, 1.0) else y
