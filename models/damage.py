"""Random damage for training and measurements: masks (H,W) bool that are True where a pixel is known."""

import torch
from torch import Tensor

MAX_BLOCK_SHARE = 0.95
"""Largest share of an image that squares cover: random squares hardly hit the remaining gaps."""


def drop_pixels(h: int, w: int, share: float, generator: torch.Generator) -> Tensor:
    """Lose each pixel with the probability `share`; return the known pixels (h,w) bool."""
    return torch.rand(h, w, generator=generator) >= share


def drop_blocks(h: int, w: int, share: float, side: int, generator: torch.Generator) -> Tensor:
    """Lose squares of `side` pixels at random positions until they cover `share` of the image.

    At most MAX_BLOCK_SHARE is covered.

    Returns:
        The known pixels (h,w) bool.
    """
    known = torch.ones(h, w, dtype=torch.bool)
    to_lose, lost = min(share, MAX_BLOCK_SHARE) * h * w, 0
    while lost < to_lose:
        y = int(torch.randint(1 - side, h, (1,), generator=generator))
        x = int(torch.randint(1 - side, w, (1,), generator=generator))
        block = known[max(y, 0) : y + side, max(x, 0) : x + side]
        lost += int(block.sum())
        block.fill_(False)
    return known


def drop_strokes(h: int, w: int, count: int, generator: torch.Generator) -> Tensor:
    """Lose `count` straight scratches, 1 to 8 pixels wide; return the known pixels (h,w) bool."""
    y, x = torch.arange(h).view(-1, 1), torch.arange(w)
    known = torch.ones(h, w, dtype=torch.bool)
    for a, b, c, d, width in torch.rand(count, 5, generator=generator).tolist():
        (y0, x0), (y1, x1) = (a * h, b * w), (c * h, d * w)
        length = max(1.0, ((y1 - y0) ** 2 + (x1 - x0) ** 2) ** 0.5)
        along = ((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / length
        across = ((y - y0) * (x1 - x0) - (x - x0) * (y1 - y0)) / length
        known &= ~((across.abs() <= 0.5 + 3.5 * width) & (along >= 0) & (along <= length))
    return known
