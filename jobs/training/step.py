"""One update of a model: forward, backward, clipping, AdamW and the moving average. No Ray here."""

from typing import Any

import torch
from torch import Tensor, nn

from imagemill.jobs.training.states import State
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.precision import Precision

LEAST_SCALE = 1.0
"""Gradients that overflow float16 at this scale of the loss are not finite for another reason."""


class TaskLoss(nn.Module):
    """A task's loss as a module, so that DDP sees one forward pass."""

    def __init__(self, task_name: str, model: Any) -> None:
        super().__init__()
        self.objective, self.model = OBJECTIVES[task_name], model

    def forward(self, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.objective.loss(self.model, x_BCHW, generator)


class Step:
    """Updates `state` by the loss of `loss_of`, a TaskLoss or DDP around one.

    In float16 the loss is scaled, so that small gradients do not become zero, and an update whose gradients overflow is left
    out (Micikevicius et al. 2018). The scale begins anew when a training goes on: it settles within some 20 steps.
    """

    def __init__(self, loss_of: nn.Module, state: State, precision: Precision, clip_norm: float) -> None:
        self.loss_of, self.state, self.precision, self.clip_norm = loss_of, state, precision, clip_norm
        self.scaler = torch.amp.GradScaler(precision.device, enabled=precision.dtype == torch.float16)

    def __call__(self, x_BCHW: Tensor, generator: torch.Generator, learning_rate: float) -> dict[str, Tensor]:
        """One update on a batch (B,3,crop,crop) uint8 on the model's device.

        Returns: the task's figures, and `gradient_norm`, which is not finite when the training diverges; all on the device.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        x = x_BCHW.float().div_(255).contiguous(memory_format=torch.channels_last)
        # Tasks draw their damage where the images are.
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
        if self.scaler.is_enabled() and self.scaler.get_scale() >= LEAST_SCALE:
            # An overflow at a large scale is no divergence, but a loss that is not finite is one.
            norm = figures["loss"]
        return {**figures, "gradient_norm": norm}
