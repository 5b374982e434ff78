"""What a network is trained for, and what a task does with a trained network."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from imagemill.models.autoencoder import Network
from imagemill.models.errors import CheckpointError
from imagemill.models.precision import Precision
from imagemill.models.tasks.task import Output, Sample


class Objective(ABC):
    """A training objective: what is removed from clean images, and the loss. Objectives have no state.

    Attributes:
        trainable_types: the base classes of the architectures that can be trained for it.
        module_methods: the methods that any other class of a user needs to be trained for it. Empty if only subclasses of
            `trainable_types` can be trained.
    """

    trainable_types: ClassVar[tuple[type[Network], ...]]
    module_methods: ClassVar[tuple[str, ...]] = ()

    def freeze(self, model: Network) -> None:  # noqa: B027 - most objectives train all weights
        """Set `requires_grad` to False for weights that are not trained; by default all weights are trained."""

    @abstractmethod
    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss of one training step.

        Args:
            model: the network; call it once, because DistributedDataParallel expects one forward pass.
            x_BCHW: clean images (B,3,H,W) float in [0,1]. New tensors are created on their device.
            generator: source of random damage, on the device of the images.

        Returns:
            Scalars; "loss" is minimised, the others are logged.
        """

    @abstractmethod
    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure clean held-out images (B,3,H,W) float in [0,1].

        Returns:
            Figures with "psnr_db". The best epoch is the one with the lowest "loss" if there is one, else the highest PSNR.
        """

    def finish(self, model: Network, images: Iterable[Tensor]) -> None:  # noqa: B027 - most objectives fit nothing
        """Fit tables that need the final weights, on training images (1,3,H,W) float in [0,1]; by default nothing."""

    @abstractmethod
    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the network's input for clean images (B,3,H,W), and its output, both in [0,1]; one plane is gray."""


class TaskObjective(ABC):
    """What a task of models/tasks does with a network. The objective of a task that can be trained is also an `Objective`.

    Attributes:
        network_types: the classes of networks that the task can use.
    """

    network_types: ClassVar[tuple[type[Network], ...]]

    def check(self, model: Network, params: Any) -> None:
        """Check that the network can do what the parameters ask. `tasks.card_checks` checks what the card alone decides.

        Raises:
            CheckpointError: when it cannot.
        """
        if not isinstance(model, self.network_types):
            names = " or ".join(kind.__name__ for kind in self.network_types)
            raise CheckpointError(
                f"{type(self).__name__.lower()} needs a network of the class {names}, not {type(model).__name__}. "
                "`imagemill models` lists the checkpoints of each task"
            )

    def prepare(self, model: Network, params: Any, style_images: list[np.ndarray], device: str) -> Network:
        """Return the network that `predict` uses; called once for each worker.

        Args:
            model: the network of the checkpoint.
            params: parameters of the task.
            style_images: images (H,W,3) uint8 of the run, for tasks with a `style_param`.
            device: "cpu" or "cuda".
        """
        return model

    @abstractmethod
    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Process images of one padded size.

        The pixels of a large sample may be overwritten to save memory.

        Args:
            model: the network that `prepare` returned.
            samples: the images.
            params: parameters of the task.
            precision: device and dtype.

        Raises:
            SampleError: when an image cannot be processed.
        """
