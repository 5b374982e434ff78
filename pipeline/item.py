"""One image on its way through an actor, and what the actor knows of its job."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.tasks.task import Sample
from pipeline.pixels import Picture, PixelConfig
from pipeline.sources import Input
from pipeline.storage import Store


@dataclass(frozen=True)
class Job:
    """All that an actor needs to know; the same for each image of a run."""

    task: str
    params: dict[str, Any]
    checkpoint_sha256: str
    references: list[str]
    """Digests of the images that the run works from beside its input; `keep_references` put them into OUTPUT."""
    source: Input
    output: Store
    max_pixels: int
    image: PixelConfig
    reconstruct: bool
    quality: bool
    compression_level: int
    lineage: dict[str, Any]
    batch_size: int
    threads: int
    dtype: str | None


@dataclass
class Item:
    """One image on its way."""

    reference: dict[str, Any]
    data: bytes = b""
    """The encoded image, until it is decoded."""
    mask_data: bytes | None = None
    pixels: int = 0
    """By its header."""
    picture: Picture | None = None
    mask: np.ndarray | None = None
    content_sha256: str = ""
    error: dict[str, Any] | None = None
    row: dict[str, Any] = field(default_factory=dict)

    def taken(self) -> bytes:
        """The encoded image, which the item then holds no more."""
        data, self.data = self.data, b""
        return data

    def sample(self, image_wanted: bool, quality_wanted: bool) -> Sample:
        assert self.picture is not None
        seed = int(self.reference["image_id"][:16], 16)
        return Sample(self.picture.rgb, self.picture.alpha, self.mask, seed, image_wanted, quality_wanted)


class Rejected(Exception):
    """An image that ends as a reject, with the stage where it did."""

    def __init__(self, stage: str, error_class: str, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.row = {"stage": stage, "error_class": error_class, "error": message, "transient": transient}
