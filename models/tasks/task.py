"""What the pipeline needs to know about a task: parameters, columns and defaults. Tensor code is in models/objectives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from imagemill.models.card import Card

if TYPE_CHECKING:
    import numpy as np


class Params(BaseModel):
    """Parameters of a task that change pixels or latents. They are part of the version of an output."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Parameters that the task did not always have."""

    def version_values(self) -> dict[str, Any]:
        """Return the parameters that the version of an output depends on.

        The defaults of ADDED are left out, so that a new parameter does not change the version of existing outputs.
        """
        values = self.model_dump()
        return {key: v for key, v in values.items() if key not in self.ADDED or v != type(self).model_fields[key].default}


class SampleError(Exception):
    """A task cannot process one image. The image becomes a reject of `error_class`."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass
class Sample:
    """One image as a task receives it.

    Attributes:
        rgb: (H,W,3) uint8, upright.
        alpha: (H,W) uint8, or None for an image without transparency.
        mask: (H,W) uint8 from the image's mask file, 255 where a pixel is missing, else 0; None unless `Task.needs_mask`.
        seed: of random numbers, derived from the image's identity, so that a repeated run draws the same numbers.
        needs_image: whether the caller uses the output's pixels; they are optional for a task whose output is a latent.
        needs_quality: whether to compute quality figures that cost more than the output itself.
        report_progress: called after each iteration by a task that iterates, so that the caller does not take it for stuck.
    """

    rgb: "np.ndarray"
    alpha: "np.ndarray | None" = None
    mask: "np.ndarray | None" = None
    seed: int = 0
    needs_image: bool = True
    needs_quality: bool = True
    report_progress: Callable[[], None] | None = None


@dataclass
class Output:
    """What a task makes of one image.

    Attributes:
        image: (H,W,3) uint8.
        latent: (C,h,w): symbols int8, or values float32 or float16.
        columns: values of the task's quality columns.
        drops_alpha: whether the output is opaque even if the source has transparency.
        has_colours: whether the output has colours even if the source is gray.
        payload: the entropy-coded latent, if the parameters ask for it.
    """

    image: "np.ndarray | None" = None
    latent: "np.ndarray | None" = None
    columns: dict[str, Any] = field(default_factory=dict)
    drops_alpha: bool = False
    has_colours: bool = False
    payload: bytes | None = None


class Task:
    """Base class of the rows of `TASKS`. Tasks have no state.

    Attributes:
        summary: what the task does in one imperative sentence, which is the help text of its command.
        default_checkpoint: the bundled checkpoint that a run uses by default; None if it must name one.
        columns: quality columns of the task and their Python types.
        worst: the quality column to review first, and whether its lowest or highest values are the worst.
        stores_latent: whether the output is a latent instead of an image.
        style_param: name of the parameter that lists style images as files or URLs.
        min_style_side: smallest side of a style image, in pixels.
        report_crops: whether reports show crops in full resolution, because the effect is invisible in a reduced image.
        dtype: the number format that networks run in by default; None for the fastest one.
        needs_lossless: whether some source pixels stay bit-identical, so that PNG replaces lossy output formats.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    default_checkpoint: ClassVar[str | None]
    Params: ClassVar[type[Params]] = Params
    columns: ClassVar[dict[str, Any]] = {}
    worst: ClassVar[tuple[Literal["lowest", "highest"], str] | None] = None
    stores_latent: ClassVar[bool] = False
    style_param: ClassVar[str | None] = None
    min_style_side: ClassVar[int] = 1
    report_crops: ClassVar[bool] = False
    dtype: ClassVar[str | None] = None
    needs_lossless: ClassVar[bool] = False

    def needs_mask(self, params: Any) -> bool:
        """Return whether the parameters require a mask file next to each image."""
        return False

    def version_values(self, params: Any, card: Card) -> dict[str, Any]:
        """Return the parameters that the version of an output of a checkpoint depends on."""
        values: dict[str, Any] = params.version_values()
        return values

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Check what the card alone decides about the parameters, for a network that the task can use.

        Args:
            name: the checkpoint, for messages.
            card: its card.
            params: parameters of the task.

        Raises:
            CheckpointError: when the network cannot do what the parameters ask.
        """
