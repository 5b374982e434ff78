"""The memory that one pass of an imported network needs, by its card, and the reject of images that need too much."""

from typing import Protocol

from imagemill.models.contract import Tiling
from imagemill.models.tasks.task import SampleError

TOO_LARGE = "TooLargeForMemory"
"""Class of the reject of an image that cannot be processed as a whole."""


class Sized(Protocol):
    """A network whose card says how much memory it needs.

    Attributes:
        bytes_per_pixel: memory that one pass needs for each pixel of an input; None if it was not measured.
    """

    bytes_per_pixel: int | None

    def padded_side(self, side: int) -> int:
        """Return the side that the network gets for a side of an image, in pixels."""


def pass_bytes(model: Sized, h: int, w: int) -> int | None:
    """Return the memory of one pass over an image of h×w pixels, or None if the card does not say it."""
    if model.bytes_per_pixel is None:
        return None
    return model.bytes_per_pixel * model.padded_side(h) * model.padded_side(w)


def describe_need(needed: int, memory: int) -> str:
    """Say how much memory a pass needs, and how much it may take."""
    return f"need {needed / 1e9:.3g} GB, but a worker may use {memory / 1e9:.3g} GB"


def too_large(
    h: int, w: int, tiling: Tiling, problem: str, share: float, can_blend: bool, has_mask: bool = False
) -> SampleError:
    """Return the error of an image that does not fit into memory; it says what helps.

    Args:
        h: height of the image.
        w: width of the image.
        tiling: how the image is cut into tiles.
        problem: what is wrong with tiles or images of this size.
        share: share of the pixels of the image that fit.
        can_blend: whether the task has tiles that are blended.
        has_mask: whether the image has a mask. Its pixels are kept, so that a run cannot reduce it.
    """
    if tiling == "approximate":
        return SampleError(TOO_LARGE, f"tiles of this network {problem}. Run fewer workers (--workers)")
    side = int(max(h, w) * share**0.5)
    blending = "cut them into tiles (--tile approximate), " if can_blend else ""
    reducing = f"the image and its mask to a longer side of {side} pixels" if has_mask else f"images (--resize max:{side})"
    return SampleError(
        TOO_LARGE,
        f"the network takes whole images, and {w}×{h} pixels {problem}. Reduce {reducing}, {blending}or run fewer workers "
        "(--workers)",
    )
