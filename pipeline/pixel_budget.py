"""How many pixels a worker may hold at once, which bounds its memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from imagemill.pipeline.item import Item

MODEL_PIXELS = {"cpu": 2_000_000, "cuda": 64_000_000}
"""Device → pixels of a model batch; on a GPU that the worker does not share."""
WAITING_PIXELS = 64_000_000
DECODED_PIXELS = {"cpu": 48_000_000, "cuda": 1_000_000_000}
"""Device → pixels of all images that a worker has decoded ahead of the model."""


@dataclass(frozen=True)
class PixelBudget:
    """Limits of a worker, in pixels of the images that come out of the model.

    Ordinary images share the budget. A large image takes all of it: the worker finishes every image before it, processes
    the large image alone, and only then goes on. An image larger than the whole budget is processed in the same way.
    """

    model: int
    """Pixels of a model batch."""
    waiting: int
    """Pixels of images that wait until their batch is full. Above this limit, the largest group becomes a batch at once."""
    largest_shared: int
    """Pixels of the largest image that is decoded while the worker holds other images."""
    scale: int
    """Factor by which the model enlarges each side of an image."""

    @classmethod
    def of_worker(cls, device: str, gpus: float, threads: int, scale: int) -> "PixelBudget":
        """Return the budget of a worker.

        Args:
            device: `cpu` or `cuda`, where the model runs.
            gpus: share of a GPU that the worker has.
            threads: threads that decode; each may have two images ahead of the model.
            scale: factor by which the model enlarges each side of an image.
        """
        model = MODEL_PIXELS[device] if device == "cpu" else int(gpus * MODEL_PIXELS[device])
        return cls(model, WAITING_PIXELS, DECODED_PIXELS[device] // (2 * threads), scale)

    def pixels_out(self, pixels: int) -> int:
        """Return the pixels that the model makes of an image of `pixels`."""
        return pixels * self.scale**2

    def batch_images(self, pixels: int) -> int:
        """Return how many images of `pixels` each fit into a model batch; at least 1."""
        return max(1, self.model // self.pixels_out(pixels))

    def is_large(self, item: Item) -> bool:
        """Return whether an image takes the whole budget, according to the size in its header."""
        return self.pixels_out(item.pixels) > self.largest_shared

    def split(self, items: Iterable[Item]) -> Iterator[Iterator[Item]]:
        """Yield groups of items in order: ordinary images together, each large image alone.

        Items are taken from `items` lazily. Finish a group before you ask for the next one.
        """
        for is_large, group in groupby(items, self.is_large):
            if is_large:
                yield from (iter((item,)) for item in group)
            else:
                yield group
