"""What a task is to a pipeline: parameters, columns, defaults. No torch: what it does with tensors is its objective."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """Parameters of a task that change pixels or codes; they are part of an output's version."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleError(Exception):
    """A sample that its task cannot do: becomes a reject of this class."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass
class Sample:
    """One image as a task gets it."""

    rgb: np.ndarray
    """(H,W,3) uint8, upright."""
    alpha: np.ndarray | None = None
    """(H,W) uint8, where the file has transparency."""
    mask: np.ndarray | None = None
    """(H,W) uint8 from the mask file of the image: 255 where it is missing, else 0; where the parameters ask for one."""
    seed: int = 0
    """From the image's identity: what is drawn at random for it is drawn again the same."""
    needs_image: bool = True
    """Whether anybody looks at the output's pixels; of a task whose output is a latent they are a by-product."""
    needs_quality: bool = True
    """Whether to compute figures of quality that cost more than the output itself."""


@dataclass
class Output:
    """What one image became."""

    image: np.ndarray | None = None
    """(H,W,3) uint8."""
    latent: np.ndarray | None = None
    """(C,h,w) int8 symbols."""
    columns: dict[str, Any] = field(default_factory=dict)
    drops_alpha: bool = False
    """Whether the source's alpha is not put back."""
    has_colours: bool = False
    """Whether it has colours even where the source is gray."""
    payload: bytes | None = None
    """The latent entropy coded, where the parameters ask for it."""


class Task:
    """One row of the table in models/tasks/__init__.py. Stateless."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """What the task does, in one imperative sentence: the help of its command."""
    default_checkpoint: ClassVar[str]
    Params: ClassVar[type[Params]] = Params
    columns: ClassVar[dict[str, Any]] = {}
    """Quality columns of the task and their Python types."""
    worst: ClassVar[tuple[Literal["lowest", "highest"], str] | None] = None
    """Which value of which quality column a person should look at first."""
    stores_latent: ClassVar[bool] = False
    style_param: ClassVar[str | None] = None
    """The parameter that lists files or URLs of images which a run works from beside its input."""
    min_style_side: ClassVar[int] = 1
    report_crops: ClassVar[bool] = False
    """Whether what it does shows only pixel by pixel, so that a report shows the middles of images."""
    needs_lossless: ClassVar[bool] = False
    """Whether some pixels of the source are kept to the last bit: outputs of lossy formats are then written as PNG."""

    def needs_mask(self, params: Any) -> bool:
        """Whether a mask file beside each image says what is missing of it."""
        return False
