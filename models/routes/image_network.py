"""A network of another library that maps images to images, called under the contract of its card."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import Network
from imagemill.models.contract import Contract
from imagemill.models.tiling import pad_to_size

Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Calls a module with images (B,channels,H,W) in its own range, and levels (B,) of noise or masks (B,1,H,W) as well."""
DEFAULT_SIGMA = 15 / 255
"""Noise level of values in [0,1] for a network that takes one, when none is given. It is the default of spandrel."""


def call_module(module: nn.Module, x_BCHW: Tensor, sigma_B: Tensor | None) -> Tensor:
    """Call `module(x)`, or `module(x, sigma)` with noise levels (B,)."""
    result: Tensor = module(x_BCHW) if sigma_B is None else module(x_BCHW, sigma_B)
    return result


class ImageNetwork(Network):
    """Map images (B,3,H,W) float in [0,1] to images (B,3,scale·H,scale·W), nominally in [0,1], not clipped.

    Images of any size are padded to one that the module takes, and the output is cropped. A network of one channel processes
    each colour plane by itself. Of a gray image it processes one plane. A network that takes masks gets each mask as the
    fourth plane of its image.

    Attributes:
        takes_mask: whether images have a fourth plane, the mask: 1 where a pixel is missing, else 0.
        multiple: tiles must begin at multiples of it, in pixels.
        bytes_per_pixel: memory that one pass needs for each pixel of an input; None if it was not measured.

    Args:
        module: the network itself, with its weights.
        contract: how it is called.
        call: calls the module.
        pads: whether `call` pads its input to the size multiple itself.
    """

    def __init__(self, module: nn.Module, contract: Contract, call: Call = call_module, pads: bool = False) -> None:
        super().__init__()
        self.module, self.call, self.pads, self.contract = module, call, pads, contract
        self.low, high = contract.input_range
        self.span = high - self.low
        self.planes = contract.channels
        self.takes_noise_level, self.takes_mask = contract.noise_level, contract.mask
        self.multiple, self.halo, self.scale = contract.size_multiple, contract.halo, contract.scale
        self.min_side, self.tiling, self.dtypes = contract.min_side, contract.tiling, contract.dtypes
        self.bytes_per_pixel = contract.bytes_per_pixel
        side = -(-max(256, contract.min_side) // self.multiple) * self.multiple
        self.example = (4 if self.takes_mask else 3, side, side)

    def padded_side(self, side: int) -> int:
        """Return the side that the module gets for a side of an image, in pixels."""
        side = max(side, self.min_side)
        return side if self.pads else side + -side % self.multiple

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor | None = None) -> Tensor:
        """Process images.

        Args:
            x_BCHW: images (B,3,H,W) float in [0,1], or (B,4,H,W) for a network that takes masks.
            sigma_B: noise levels (B,) as standard deviations of values in [0,1], for a network that takes them.
        """
        h, w = x_BCHW.shape[2:]
        x = pad_to_size(x_BCHW, self.padded_side(h), self.padded_side(w))
        x, mask = (x[:, :3], x[:, 3:]) if self.takes_mask else (x, None)
        if (self.low, self.span) != (0.0, 1.0):
            x = x * self.span + self.low
        if self.planes == 3:
            y = self.call(self.module, x, mask if self.takes_mask else sigma_B)
        else:
            gray = torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])
            planes = x[:, :1] if gray else x.reshape(-1, 1, *x.shape[2:])
            if sigma_B is not None and not gray:
                sigma_B = sigma_B.repeat_interleave(3)
            y = self.call(self.module, planes, sigma_B)
            y = y.expand(-1, 3, -1, -1) if gray else y.reshape(-1, 3, *y.shape[2:])
        y = y[..., : h * self.scale, : w * self.scale]
        return (y - self.low) / self.span if (self.low, self.span) != (0.0, 1.0) else y
