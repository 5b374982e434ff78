"""One image on its way through an actor."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagemill.models.tasks.task import Sample
from imagemill.models.type_checks import require_value
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.store_failures import class_of, reason


@dataclass
class Item:
    """One image on its way."""

    reference: dict[str, Any]
    data: bytes = b""
    """The encoded image, until it is decoded."""
    mask_data: bytes | None = None
    pixels: int = 0
    """By its header."""
    picture: DecodedImage | None = None
    mask: np.ndarray | None = None
    content_sha256: str = ""
    error: dict[str, Any] | None = None
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def decoded(self) -> DecodedImage:
        """The picture of an image that was decoded, until its output is made."""
        return require_value(self.picture, "the decoded picture")

    def taken(self) -> bytes:
        """The encoded image, which the item then holds no more."""
        data, self.data = self.data, b""
        return data

    def among(self, share: float) -> bool:
        """Whether it is of this share of all images; which are is decided by their identities."""
        return int(self.reference["image_id"][-8:], 16) < share * 2**32

    def sample(self, needs_image: bool, needs_quality: bool) -> Sample:
        seed = int(self.reference["image_id"][:16], 16)
        return Sample(self.decoded.rgb, self.decoded.alpha, self.mask, seed, needs_image, needs_quality)


class Rejected(Exception):
    """An image that ends as a reject, with the stage where it did."""

    def __init__(self, stage: str, error_class: str, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.row = {"stage": stage, "error_class": error_class, "error": message, "transient": transient}


def unexpected(stage: str, error: Exception, transient: bool) -> Rejected:
    """Return the reject of an image at which something failed that its stage does not name."""
    return Rejected(stage, class_of(error), reason(error), transient)
