"""Try an imported network on one image, so that unusable weights fail at their import and not in a run."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagemill.models.contract import Contract
from imagemill.models.errors import CheckpointError, describe_error
from imagemill.models.resizing import resize

SIDES = (96, 128)
"""Height and width of the image in pixels, before they are rounded up to what the network takes."""
NOISE = 5 / 255
"""Standard deviation of the noise of the image: a restoration network must not be confused by it."""
MIN_CORRELATION = 0.7
"""Lowest correlation of a result with its input. The image with noise of a PSNR of 15 dB has 0.8; an unrelated image has 0.

Correlation does not change with brightness and contrast, which some networks correct.
"""
POOR_PSNR = 15.0
"""A reconstruction with a lower PSNR in dB has nearly no details of its image."""
MAX_LEAK = 1 / 255
"""Largest change of a filled pixel, where 1 is white, when the missing pixels of the image change."""


@dataclass(frozen=True)
class Trial:
    """The result for one image.

    Attributes:
        correlation: of the result with the input (for an upscaler: enlarged bicubically), -1 to 1.
        psnr_db: of the result compared with the same image. For a network that fills holes, both figures are for the hole.
    """

    correlation: float
    psnr_db: float

    def describe(self) -> str:
        """Return the figures as text."""
        return f"correlation {self.correlation:.2f}, PSNR {self.psnr_db:.1f} dB"


def draw_photo(height: int, width: int) -> Tensor:
    """Draw an image (1,3,H,W) in [0,1] with slopes, edges, discs and texture, like a photo. The same at each call."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = torch.stack([0.3 + 0.5 * x, 0.6 - 0.4 * y, 0.2 + 0.5 * x * y])
    for cx, cy, radius, colour in ((0.3, 0.4, 0.2, (0.9, 0.5, 0.2)), (0.7, 0.6, 0.25, (0.1, 0.3, 0.7))):
        disc = ((x - cx) ** 2 + (y - cy) ** 2).sqrt() < radius
        planes = torch.where(disc, torch.tensor(colour).view(3, 1, 1) * (0.7 + 0.3 * y), planes)
    planes = planes + 0.08 * torch.sin(60 * x + 20 * y) * (y > 0.75)
    noise = torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    return (planes + NOISE * noise).clamp(0, 1)[None]


def draw_hole(height: int, width: int) -> Tensor:
    """Draw a mask (1,1,H,W) with a hole in the middle, where it is 1; it is 0 elsewhere."""
    mask = torch.zeros(1, 1, height, width)
    mask[..., 2 * height // 5 : -(-3 * height // 5), 2 * width // 5 : -(-3 * width // 5)] = 1
    return mask


def try_network(network: nn.Module, contract: Contract) -> Trial:
    """Process one image.

    Args:
        network: an ImageNetwork or a FloatCoder.
        contract: its contract.

    Raises:
        CheckpointError: when the network fails, or its result has the wrong size or values that are not finite.
    """
    multiple = math.lcm(contract.size_multiple, 8)
    height, width = (-(-max(side, contract.min_side) // multiple) * multiple for side in SIDES)
    x = draw_photo(height, width)
    hole = draw_hole(height, width)
    try:
        with torch.inference_mode():
            if contract.mask:
                y, other = (network(torch.cat([image, hole], 1)) for image in (x, torch.where(hole > 0, 1 - x, x)))
            elif contract.latent:
                y = network(x)
            else:
                y = network(x, x.new_full((1,), NOISE) if contract.noise_level else None)
    except Exception as e:  # noqa: BLE001 - code of libraries and of users may raise anything
        raise CheckpointError(f"the network fails for an image of {width}×{height} pixels: {describe_error(e)}") from None
    expected = (1, 3, contract.scale * height, contract.scale * width)
    if tuple(y.shape) != expected:
        raise CheckpointError(f"the network makes {tuple(y.shape)} of an image of {tuple(x.shape)}; must be {expected}")
    if not y.isfinite().all():
        raise CheckpointError("the network makes values that are not finite. Are the weights damaged?")
    if contract.mask:
        inside = (hole > 0).expand_as(x)
        if (other - y)[inside].abs().max() > MAX_LEAK:
            raise CheckpointError(
                "the network uses the pixels that the mask marks as missing. It must take a mask that is 1 where a pixel is "
                "missing, and ignore these pixels"
            )
        return compare(y[inside].clamp(0, 1), x[inside])
    return compare(y.clamp(0, 1), x if contract.scale == 1 else resize(x, list(expected[2:]), "bicubic"))


def compare(y: Tensor, reference: Tensor) -> Trial:
    """Compare the values of two images in [0,1], of the same shape."""
    error = float((y - reference).square().mean())
    stacked = torch.stack([y.flatten(), reference.flatten()])
    correlation = float(torch.corrcoef(stacked)[0, 1]) if float(y.std()) > 0 else 0.0
    return Trial(correlation, -10 * math.log10(max(error, 1e-10)))
