"""Resize and crop images before a network processes them, as trainers of diffusion models do."""

from dataclasses import dataclass
from functools import cache
from math import isqrt

import numpy as np
from PIL import Image

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.errors import ImageError

MAX_ASPECT = 4
"""Largest ratio of the sides of a bucket, as in the buckets of SDXL (Podell et al. 2023, appendix I)."""


@dataclass(frozen=True)
class Fitting:
    """How an upright image is resized, and then cropped."""

    resized: tuple[int, int]
    """Width and height of the whole image after it is resized."""
    crop: tuple[int, int, int, int]
    """Left, top, width and height of the part that is processed, in pixels of the resized image."""

    def columns(self, width: int, height: int) -> dict[str, int]:
        """Return the columns of a row (schema.FITTING) for an upright image of a size, without what changes nothing."""
        columns: dict[str, int] = {}
        if self.resized != (width, height):
            columns |= dict(zip(("resized_width", "resized_height"), self.resized, strict=True))
        if self.crop != (0, 0, *self.resized):
            columns |= dict(zip(("crop_left", "crop_top", "crop_width", "crop_height"), self.crop, strict=True))
        return columns


def plan_fitting(width: int, height: int, config: ImageConfig) -> Fitting:
    """Return how an upright image of a size is resized and cropped.

    Raises:
        ImageError: with the class TooSmall, when the image is smaller than what is cropped from it.
    """
    kind, *numbers = config.resize.split(":")
    resized = box = width, height
    if kind == "max":
        resized = box = limit_long_side(width, height, int(numbers[0]))
    elif kind == "bucket":
        box = choose_bucket(width, height, int(numbers[0]), int(numbers[1]))
        resized = cover(width, height, *box)
    kind, *numbers = config.crop.split(":")
    if kind == "multiple":
        multiple = int(numbers[0])
        box = box[0] // multiple * multiple, box[1] // multiple * multiple
        if not all(box):
            size = f"{resized[0]}×{resized[1]}"
            raise ImageError("TooSmall", f"{size} pixels have no part whose sides are multiples of image.crop={config.crop}")
    left, top = ((side - part) // 2 for side, part in zip(resized, box, strict=True))
    return Fitting(resized, (left, top, *box))


def limit_long_side(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the size of an image after it is reduced to a long side; a smaller image keeps its size."""
    longest = max(width, height)
    if longest <= side:
        return width, height
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def choose_bucket(width: int, height: int, area: int, step: int) -> tuple[int, int]:
    """Return the width and height of the bucket whose aspect ratio is nearest to that of an image.

    Among buckets that are equally near, the largest is chosen, then the widest.
    """

    def order(bucket: tuple[int, int]) -> tuple[float, int, int]:
        # In integers, so that rounding cannot decide.
        a, b = width * bucket[1], height * bucket[0]
        return max(a, b) / min(a, b), -bucket[0] * bucket[1], -bucket[0]

    return min(list_buckets(area, step), key=order)


@cache
def list_buckets(area: int, step: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes (width, height) of at most `area` pixels whose sides are multiples of `step`.

    For each width the largest height, and the same with width and height exchanged.
    """
    buckets = set()
    for side in range(step, isqrt(MAX_ASPECT * area) + 1, step):
        other = area // side // step * step
        if side <= MAX_ASPECT * other and other <= MAX_ASPECT * side:
            buckets |= {(side, other), (other, side)}
    return tuple(sorted(buckets))


def cover(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """Return the size of an image after it is resized so that it just covers a box."""
    if box_width * height >= box_height * width:
        return box_width, max(box_height, round(height * box_width / width))
    return max(box_width, round(width * box_height / height)), box_height


def apply_fitting(pixels: np.ndarray, fitting: Fitting) -> np.ndarray:
    """Resize and crop an image (H,W) or (H,W,3) uint8 with a Lanczos filter.

    Only the part that remains is computed, because a narrow image that covers a box would take gigabytes.
    """
    height, width = pixels.shape[:2]
    left, top, box_width, box_height = fitting.crop
    if fitting.resized == (width, height):
        part = pixels[top : top + box_height, left : left + box_width]
        return part if part.shape == pixels.shape else part.copy()
    scale_x, scale_y = width / fitting.resized[0], height / fitting.resized[1]
    right, bottom = min(width, (left + box_width) * scale_x), min(height, (top + box_height) * scale_y)
    source = (left * scale_x, top * scale_y, right, bottom)
    return np.array(Image.fromarray(pixels).resize((box_width, box_height), Image.Resampling.LANCZOS, source))
