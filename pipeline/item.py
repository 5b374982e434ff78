"""One image on its way through a worker."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagemill.models.tasks.task import Output, Sample
from imagemill.models.type_checks import require_value
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.store_failures import class_of, reason


@dataclass
class Item:
    """An image and its intermediate results. Each stage releases what the later stages do not need."""

    reference: dict[str, Any]
    """A row of the plan (schema.REFERENCE)."""
    data: bytes = b""
    """The encoded image, until it is decoded."""
    mask_data: bytes | None = None
    """The encoded mask, until it is decoded."""
    pixels: int = 0
    """Width × height according to the header of the file."""
    picture: DecodedImage | None = None
    """The decoded image, until its output is encoded."""
    mask: np.ndarray | None = None
    """(H,W) uint8: 255 where the image is missing, else 0."""
    content_sha256: str = ""
    output: Output | None = None
    """The output of the model for the image, until it is encoded."""
    error: dict[str, Any] | None = None
    """The reject columns of an image that failed."""
    row: dict[str, Any] = field(default_factory=dict)
    """The finished row (schema.row_schema)."""

    @property
    def decoded(self) -> DecodedImage:
        """The decoded image; only valid between decoding and encoding."""
        return require_value(self.picture, "the decoded picture")

    def encoded_bytes(self) -> int:
        """Return the bytes of the encoded image and mask that the item holds."""
        return len(self.data) + len(self.mask_data or b"")

    def take_data(self) -> bytes:
        """Return the encoded image and release it from the item."""
        data, self.data = self.data, b""
        return data

    def is_in_sample(self, share: float) -> bool:
        """Return whether the image belongs to the given share of all images, chosen by its identity."""
        return int(self.reference["image_id"][-8:], 16) < share * 2**32

    def sample(self, needs_image: bool, needs_quality: bool, report_progress: Callable[[], None]) -> Sample:
        """Return the model input of the image; its random seed derives from its identity."""
        seed = int(self.reference["image_id"][:16], 16)
        return Sample(self.decoded.rgb, self.decoded.alpha, self.mask, seed, needs_image, needs_quality, report_progress)


class Rejected(Exception):
    """An image that ends as a reject, with the stage at which it failed.

    Args:
        stage: `list`, `fetch`, `decode`, `model`, `encode`, `write` or `process`.
        error_class: class of the reject, such as `TooManyPixels`.
        message: the reason in one line.
        transient: whether the next run processes the image again without `--retry-failed`.
    """

    def __init__(self, stage: str, error_class: str, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.row = {"stage": stage, "error_class": error_class, "error": message, "transient": transient}


def build_reject(stage: str, error: Exception, transient: bool) -> Rejected:
    """Return the reject of an image that failed with an unexpected error."""
    return Rejected(stage, class_of(error), reason(error), transient)
