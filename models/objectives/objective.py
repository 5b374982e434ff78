"""What a model is trained for, and what a task does with a trained one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from imagemill.models.autoencoder import Autoencoder
from imagemill.models.precision import Precision
from imagemill.models.tasks.task import Output, Sample


class Objective(ABC):
    """What a model can be trained for: what is taken away, and the loss. Stateless."""

    trainable_type: ClassVar[type[Autoencoder]]
    """The architecture, or the base of several, that can learn it."""

    def freeze(self, model: Autoencoder) -> None:  # noqa: B027 - few have something to hold
        """Take `requires_grad` from the weights that are not learned; all are by default."""

    @abstractmethod
    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One step on clean images (B,C,H,W) float in [0,1]: a dict whose "loss" is minimised; the rest is logged.

        New tensors come to lie on the images' device, and `generator` is of it: damage is drawn there. Call `model` once.
        """

    @abstractmethod
    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Figures on held-out images, "psnr_db" among them; "loss", or else that, says which epoch is the best."""

    def finish(self, model: Autoencoder, images: Iterable[Tensor]) -> None:  # noqa: B027 - as freeze
        """What is fitted once the weights are final, from training images (1,C,H,W) float in [0,1]; nothing by default."""

    @abstractmethod
    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the model is shown of clean images (B,3,H,W), and what it makes of it, in [0,1]; one plane is gray."""


class TaskObjective(Objective):
    """That of a task in models/tasks: how its outputs are made. Stateless."""

    def check(self, model: Autoencoder, params: Any) -> None:
        """Raises: CheckpointError when this model cannot do what the parameters ask."""

    def prepare(self, model: Autoencoder, params: Any, style_images: list[np.ndarray], device: str) -> Autoencoder:
        """The model as a run's parameters and style_images (H,W,3) uint8 make it, once for each actor."""
        return model

    @abstractmethod
    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Run samples whose padded sizes are equal through the model; the pixels of a large one may be written over.

        Raises: SampleError for one that cannot be done.
        """
