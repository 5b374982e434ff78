"""What a task is: what is taken away in training, what goes in and out of the model, which columns a row gets."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from models.autoencoder import Autoencoder
from models.precision import Precision
from models.tiling import padded


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
    """(H,W) uint8 of the mask file beside it, where the parameters ask for one."""
    seed: int = 0
    """From the image's identity: what is drawn at random for it is drawn again the same."""
    image_wanted: bool = True
    """Whether anybody looks at the output's pixels; of a task whose output is a latent they are a by-product."""
    quality_wanted: bool = True
    """Whether to compute figures of quality that cost more than the output itself."""


@dataclass
class Output:
    """What one image became."""

    image: np.ndarray | None = None
    """(H,W,3) uint8."""
    latent: np.ndarray | None = None
    """(C,h,w) int8 symbols."""
    columns: dict[str, Any] = field(default_factory=dict)
    opaque: bool = False
    """Whether the source's alpha is not put back."""
    coloured: bool = False
    """Whether it has colours even where the source is gray."""
    payload: bytes | None = None
    """The latent entropy coded, where the parameters ask for it."""


class Objective(ABC):
    """What a model can be trained for: what is taken away, and the loss. Stateless."""

    name: ClassVar[str]

    def freeze(self, model: Autoencoder) -> None:  # noqa: B027 - few have something to hold
        """Take `requires_grad` from the weights that are not learned; all are by default."""

    @abstractmethod
    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One step on clean images (B,C,H,W) float in [0,1]: a dict whose "loss" is minimised; the rest is logged."""

    @abstractmethod
    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Figures on held-out images, "psnr_db" among them."""

    def finish(self, model: Autoencoder, images: Iterable[Tensor]) -> None:  # noqa: B027 - as freeze
        """What is fitted once the weights are final, from training images (1,C,H,W) float in [0,1]; nothing by default."""

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the model is shown of clean images (B,3,H,W), and what it makes of it, in [0,1]; one plane is gray."""
        return x_BCHW, model(x_BCHW)


class Task(Objective):
    """One row of the table in models/tasks/__init__.py. Stateless."""

    Params: ClassVar[type[Params]] = Params
    default_checkpoint: ClassVar[str]
    columns: ClassVar[dict[str, Any]] = {}
    """Quality columns of the task and their Python types."""
    worst: ClassVar[tuple[Literal["lowest", "highest"], str] | None] = None
    """Which value of which quality column a person should look at first."""
    stores_latent: ClassVar[bool] = False
    reference_param: ClassVar[str | None] = None
    """The parameter that lists files or URLs of images which a run works from beside its input."""
    least_reference_side: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    """Whether some pixels of the source are kept to the last bit: outputs of lossy formats are then written as PNG."""

    def wants_mask(self, params: Any) -> bool:
        """Whether a mask file beside each image says what is missing of it."""
        return False

    def check(self, model: Autoencoder, params: Any) -> None:
        """Raises: CheckpointError when this model cannot do what the parameters ask."""

    def prepare(self, model: Autoencoder, params: Any, references: list[np.ndarray], device: str) -> Autoencoder:
        """The model as a run's parameters and references (H,W,3) uint8 make it, once for each actor."""
        return model

    @abstractmethod
    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Run samples whose padded sizes are equal through the model. Raises: SampleError for one that cannot be done."""


def pad_to(image: np.ndarray, stride: int) -> np.ndarray:
    """Repeat the last row and column until H and W are multiples of `stride`; (H,W,C) in, (H',W',C) out."""
    h, w = image.shape[:2]
    return np.pad(image, ((0, -h % stride), (0, -w % stride), (0, 0)), mode="edge")


def padded_size(image: np.ndarray, stride: int) -> tuple[int, int]:
    """The (H,W) that `pad_to` gives; images are batched by it."""
    h, w = image.shape[:2]
    return h + -h % stride, w + -w % stride


def byte_batch(images: Sequence[np.ndarray], stride: int, device: str) -> Tensor:
    """Images (H,W,3) uint8 of one padded size to (B,3,H,W) uint8, channels last: a quarter of what floats take.

    One alone is not copied, and not padded: `tiled` and `padded` do that.
    """
    if len(images) == 1 and images[0].flags.c_contiguous and images[0].flags.writeable:
        stacked = torch.from_numpy(images[0])[None]
    else:
        stacked = torch.from_numpy(np.stack([pad_to(image, stride) for image in images]))
    return stacked.to(device, non_blocking=True).permute(0, 3, 1, 2)


def unit(x_BCHW: Tensor) -> Tensor:
    """Bytes to float32 in [0,1]."""
    return x_BCHW.float().div_(255)


def to_batch(images: Sequence[np.ndarray], stride: int, device: str) -> Tensor:
    """Images of one padded size to (B,3,H,W) float32 in [0,1], channels last; bytes travel to the device, floats do not."""
    x = byte_batch(images, stride, device)
    h, w = padded_size(images[0], stride)
    return unit(padded(x, h, w))


def as_bytes(x_BCHW: Tensor) -> Tensor:
    """Float in [0,1] to uint8, clipped and rounded."""
    return x_BCHW.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)


def to_uint8(x_BCHW: Tensor) -> np.ndarray:
    """(B,3,H,W) float in [0,1], or uint8, to (B,H,W,3) uint8."""
    x = x_BCHW if x_BCHW.dtype == torch.uint8 else as_bytes(x_BCHW)
    out: np.ndarray = x.permute(0, 2, 3, 1).cpu().numpy()
    return out
