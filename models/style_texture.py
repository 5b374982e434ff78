"""Prepare a photo for one pass of style transfer: the colours of the style, and its texture where the photo is flat.

A decoder cannot invent strokes in a smooth sky: it gets nearly the same features everywhere, and draws waves. So smooth
regions first get the fine detail of the style image itself, as much as they lack. The network then sees strokes everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from imagemill.models.resizing import limit_pixels
from imagemill.models.style_transport import build_transport, covariance, symmetric_power

DETAIL = 17
"""Side of the box that separates the fine detail of a style from its large shapes, in pixels; it is applied three times."""
BLOCK = 8
"""Side of the blocks in which the detail of photos is measured, in pixels."""
SEAM = 64
"""Pixels over which opposite edges of the detail are blended, so that it can be repeated."""
COLOUR_PIXELS = 250_000
"""Colours of larger images are measured on a copy that is reduced to this size."""
ROWS = 256
"""Rows that are prepared at a time, to save memory."""
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class StyleTexture:
    """Colours and detail of a style.

    Attributes:
        mean: mean colour (B,3,1).
        root: square root of the covariance of the colours, (B,3,3).
        detail: fine detail (B,3,h,w), with mean 0.
        variance: mean local variance of luma, (B,1,1,1).
    """

    mean: Tensor
    root: Tensor
    detail: Tensor
    variance: Tensor


def measure_texture(styles: Sequence[Tensor], weights: Sequence[float]) -> StyleTexture:
    """Measure the mean texture of styles.

    Args:
        styles: batches (B,3,H,W) float in [0,1], each with its own size.
        weights: one weight for each style.
    """
    shares = [weight / sum(weights) for weight in weights]
    means, covariances, details, variances = [], [], [], []
    for style in styles:
        mean, colours = covariance(style)
        means.append(mean)
        covariances.append(colours)
        details.append(make_periodic(style - blur(style)))
        variances.append(local_variance(luma(style, style.new_tensor(LUMA).view(1, 3, 1, 1))).mean((2, 3), keepdim=True))
    rows, columns = (range(max(detail.shape[axis] for detail in details)) for axis in (2, 3))
    details = [repeat(detail, rows, columns) for detail in details]
    # Details of different styles are independent, so their energies add.
    unit = sum(share**2 for share in shares) ** 0.5
    return StyleTexture(
        weighted_sum(means, shares),
        symmetric_power(weighted_sum(covariances, shares), 0.5),
        weighted_sum(details, shares) / unit,
        weighted_sum(variances, shares),
    )


def add_texture(
    x_BCHW: Tensor, texture: StyleTexture, offsets: Sequence[tuple[int, int]], strength: float | Tensor
) -> Tensor:
    """Give images (B,3,H,W) in [0,1] the colours of a style, and its detail where they have less than the style.

    Args:
        x_BCHW: images.
        texture: of one style, or of one for each image.
        offsets: for each image, row and column of the style's repeated detail at which it begins.
        strength: 0 returns the images; for all images, or (B,1,1,1).
    """
    height, width = x_BCHW.shape[2:]
    recolour = build_transport(limit_pixels(x_BCHW, COLOUR_PIXELS, 1), texture.mean, texture.root)
    weights = recolour.matrix.transpose(1, 2) @ x_BCHW.new_tensor(LUMA).view(1, 3, 1)
    missing = 1 - local_variance(luma(x_BCHW, weights.unsqueeze(3))) / texture.variance.clamp_min(1e-6)
    # The square keeps detail out of regions that are only partly smooth, such as faces.
    gain = interpolate(missing.clamp(0, 1).square(), scale_factor=BLOCK, mode="bilinear", align_corners=False)
    out = torch.empty_like(x_BCHW)
    for top in range(0, height, ROWS):
        rows = slice(top, min(top + ROWS, height))
        detail = torch.stack(
            [
                repeat(each, range(rows.start + y, rows.stop + y), range(x, width + x))
                for each, (y, x) in zip(texture.detail.expand(len(x_BCHW), -1, -1, -1), offsets, strict=True)
            ]
        )
        part = x_BCHW[:, :, rows]
        out[:, :, rows] = torch.lerp(part, recolour(part) + gain[:, :, rows, :width] * detail, strength)
    return out


def luma(x_BCHW: Tensor, weights_B311: Tensor) -> Tensor:
    """Return the weighted sum (B,1,H,W) of the colours of images (B,3,H,W)."""
    return (x_BCHW * weights_B311).sum(1, keepdim=True)


def local_variance(luma_B1HW: Tensor) -> Tensor:
    """Return the mean variance of luma around each block of BLOCK×BLOCK pixels, (B,1,⌈H/BLOCK⌉,⌈W/BLOCK⌉)."""
    means = avg_pool2d(torch.cat([luma_B1HW, luma_B1HW.square()], 1), BLOCK, ceil_mode=True, count_include_pad=False)
    mean, square = box_filter(means, 3).chunk(2, 1)
    return box_filter(square - mean.square(), 7)


def box_filter(x_BCHW: Tensor, side: int) -> Tensor:
    """Return the mean of side×side values around each value; `side` is odd."""
    half = side // 2
    return avg_pool2d(pad(x_BCHW, (half, half, half, half), mode="replicate"), side, 1)


def blur(x_BCHW: Tensor) -> Tensor:
    """Apply the box of DETAIL pixels three times, which is nearly a Gaussian filter."""
    return box_filter(box_filter(box_filter(x_BCHW, DETAIL), DETAIL), DETAIL)


def make_periodic(detail_BCHW: Tensor) -> Tensor:
    """Return detail (B,C,h,w) that continues at its opposite edges without a seam, a little smaller than before.

    Each edge is blended with what lies beyond the opposite one. The weights keep the energy of independent details.
    """
    for axis in (2, 3):
        side = detail_BCHW.shape[axis]
        seam = min(SEAM, side // 4)
        inner, beyond = detail_BCHW.split([side - seam, seam], axis)
        start, rest = inner.split([seam, side - 2 * seam], axis)
        angle = (torch.arange(seam, device=detail_BCHW.device) + 0.5) / max(1, seam) * torch.pi / 2
        angle = angle.view(-1, *[1] * (3 - axis))
        detail_BCHW = torch.cat([angle.sin() * start + angle.cos() * beyond, rest], axis)
    return detail_BCHW


def repeat(image: Tensor, rows: range, columns: range) -> Tensor:
    """Return rows and columns, counted from 0 without end, of images (…,H,W) that are repeated."""
    for axis, positions in ((-2, rows), (-1, columns)):
        index = torch.arange(positions.start, positions.stop, device=image.device) % image.shape[axis]
        image = image.index_select(axis, index)
    return image


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return Σ w·t."""
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)
