"""One training step: forward, backward, gradient clipping, AdamW and the moving average. This file does not use Ray."""

from typing import Any

import torch
from torch import Tensor, nn

from imagemill.jobs.training.states import State
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.precision import Precision

MIN_SCALE = 1.0
"""Below this loss scale, gradients that are not finite in float16 are no overflow: the training diverges."""


class TaskLoss(nn.Module):
    """The loss of an objective as a module, because DistributedDataParallel wraps one forward pass."""

    def __init__(self, task_name: str, model: Any) -> None:
        super().__init__()
        self.objective, self.model = OBJECTIVES[task_name], model

    def forward(self, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss and the figures of `Objective.loss`."""
        return self.objective.loss(self.model, x_BCHW, generator)


class Step:
    """Updates a training state with batches.

    In float16, the loss is scaled so that small gradients do not become 0, and updates whose gradients overflow are skipped
    (Micikevicius et al. 2018). A resumed training starts with the initial scale, which settles within about 20 steps.

    Args:
        loss_of: a TaskLoss, or DistributedDataParallel around one.
        state: the state to update.
        precision: device and dtype.
        clip_norm: largest norm of the gradient.
    """

    def __init__(self, loss_of: nn.Module, state: State, precision: Precision, clip_norm: float) -> None:
        self.loss_of, self.state, self.precision, self.clip_norm = loss_of, state, precision, clip_norm
        self.scaler = torch.amp.GradScaler(precision.device, enabled=precision.dtype == torch.float16)

    def __call__(self, x_BCHW: Tensor, generator: torch.Generator, learning_rate: float) -> dict[str, Tensor]:
        """Update the model with one batch.

        Args:
            x_BCHW: crops (B,3,crop,crop) uint8 on the model's device.
            generator: source of random damage, on the same device.
            learning_rate: of this step, which the `rate` of a group of parameters multiplies.

        Returns:
            The figures of the objective, and `gradient_norm`, which is not finite if the training diverges; on the device.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        x = x_BCHW.float().div_(255).contiguous(memory_format=torch.channels_last)
        # Objectives create random damage on the device of the images.
        with x.device, self.precision.autocast():
            losses: dict[str, Tensor] = self.loss_of(x, generator)
        self.scaler.scale(losses["loss"]).backward()
        self.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_norm)
        self.scaler.step(state.optimizer)
        self.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.average.update_parameters(state.model)
        state.step += 1
        figures = {name: value.detach() for name, value in losses.items()}
        if self.scaler.is_enabled() and self.scaler.get_scale() >= MIN_SCALE:
            # An overflow at a large scale is no divergence; a loss that is not finite is one.
            norm = figures["loss"]
        return {**figures, "gradient_norm": norm}
