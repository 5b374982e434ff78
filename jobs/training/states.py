"""The states that a training resumes from: `OUTPUT/runs/NAME-HASH/states/` holds the newest epochs and the best one.

A state is `epoch-00012.safetensors` and, written after it, `epoch-00012.json` with its digest. A state with both files is
complete. Each state contains the history of all epochs, so that every epoch appears once in the figures, no matter how often
the training was interrupted.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from imagemill.models.autoencoder import Network
from imagemill.models.routes.weights import without_shared_memory
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.lease import check_newest
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.train")
STATES_FOLDER = "states"
INIT_FILE, CODE_FILE = "init.sha256", "code.sha256"
"""Files with the digests of the weights that the training started from, and of the code of a class of the user."""
KEPT_STATES = 2
"""The newest state, and the one before it in case the newest is damaged."""

EpochFigures = dict[str, Any]
"""The figures of one epoch: one line of metrics.jsonl."""


@dataclass
class State:
    """A model, its average that is exported, the state of AdamW, and the progress of the training."""

    model: Network
    average: AveragedModel
    optimizer: torch.optim.AdamW
    step: int = 0
    history: list[EpochFigures] = field(default_factory=list)

    @classmethod
    def begin(cls, model: Network, ema_decay: float, weight_decay: float, encoder_rate: float = 1.0) -> "State":
        """Return the state of a training before its first step.

        Args:
            model: the network with its first weights.
            ema_decay: of the average of the weights.
            weight_decay: of AdamW.
            encoder_rate: factor of the learning rate of layers whose name begins with "encoder.".
        """
        # In evaluation mode, because some architectures change buffers in training mode, such as `peak` of `conv`.
        decay = moving_average(ema_decay, lambda: state.step)
        average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True).eval()
        groups = group_parameters(model, encoder_rate)
        state = cls(model, average, torch.optim.AdamW(groups, weight_decay=weight_decay, betas=(0.9, 0.99)))
        return state

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return len(self.history)

    def share(self, epochs: int, steps_per_epoch: int) -> float:
        """Return the completed share of a training, in [0,1].

        Completed epochs count as epochs, because with another number of workers they had another number of steps.
        """
        steps = self.step - (self.history[-1]["step"] if self.history else 0)
        return (self.epoch * steps_per_epoch + steps) / (epochs * steps_per_epoch)

    def to_bytes(self) -> bytes:
        """Serialise the state as safetensors, because loading pickles would run code."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        return safetensors.torch.save(without_shared_memory({k: v.cpu() for k, v in tensors.items()}))

    def load(self, data: bytes, history: list[EpochFigures]) -> None:
        """Restore the tensors of `to_bytes` and the history."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key, value in safetensors.torch.load(data).items():
            group, _, name = key.partition(".")
            groups[group][name] = value
        self.model.load_state_dict(groups["model"])
        self.average.load_state_dict(groups["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimizer"].items():
            index, _, name = key.partition(".")
            # In the memory format of the weights; otherwise each step would convert them.
            layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
            moments.setdefault(int(index), {})[name] = value.contiguous(memory_format=layout)
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.history = history
        self.step = history[-1]["step"]


def group_parameters(model: Network, encoder_rate: float) -> list[dict[str, Any]]:
    """Return groups of parameters for AdamW, with `rate`, the factor of the learning rate of each group.

    All parameters are one group if they learn at one rate, so that the states of earlier versions can be loaded.
    """
    if encoder_rate == 1:
        return [{"params": list(model.parameters()), "rate": 1.0}]
    named = list(model.named_parameters())
    encoder = [parameter for name, parameter in named if name.startswith("encoder.")]
    others = [parameter for name, parameter in named if not name.startswith("encoder.")]
    return [{"params": others, "rate": 1.0}, {"params": encoder, "rate": encoder_rate}]


def moving_average(decay: float, updates: Callable[[], int]) -> Callable[[Any, Any, Any], None]:
    """Return an exponential moving average whose decay grows with the number of updates, so that early weights fade.

    `updates` is called on the host, because reading the counter tensor of torch would make a GPU wait in each step.
    """

    @torch.no_grad()
    def average(means: Any, values: Any, _: Any) -> None:
        if not means[0].is_floating_point():
            # Counters, such as the number of batches of a normalisation.
            torch._foreach_copy_(means, values)
            return
        current_decay = min(decay, (1 + updates()) / (10 + updates()))
        torch._foreach_lerp_(means, values, 1 - current_decay)

    return average


def average_weights(data: bytes) -> dict[str, Tensor]:
    """Return the averaged weights of a serialised state."""
    prefix = "average.module."
    return {k.removeprefix(prefix): v for k, v in safetensors.torch.load(data).items() if k.startswith(prefix)}


def state_path(epoch: int, extension: str) -> str:
    """Return the path of a file of a state below the folder of the training."""
    return f"{STATES_FOLDER}/epoch-{epoch:05d}.{extension}"


def stored_epochs(run: Store) -> list[int]:
    """Return the epochs with a complete state, newest first.

    Raises:
        StorageError: when the folder cannot be listed.
    """
    names = [entry.path.rpartition("/")[2] for entry in run.entries(STATES_FOLDER)]
    return sorted((int(name[6:-5]) for name in names if name.startswith("epoch-") and name.endswith(".json")), reverse=True)


def read_state(run: Store, epoch: int) -> tuple[bytes, list[EpochFigures]] | None:
    """Read the tensors and the history of a state; None if it is missing or damaged."""
    try:
        data = run.read(state_path(epoch, "safetensors"))
        content = json.loads(run.read(state_path(epoch, "json")))
    except (FileNotFoundError, ValueError):
        return None
    return (data, content["history"]) if hashlib.sha256(data).hexdigest() == content["sha256"] else None


def stored_init_digest(run: Store) -> str | None:
    """Return the digest of the weights that a training started from; None before its first start."""
    return run.read(INIT_FILE).decode() if run.exists(INIT_FILE) else None


def store_init_digest(init: str, run: Store) -> None:
    """Store the digest of the weights that a training starts from; delete states that started from other weights."""
    stored = stored_init_digest(run)
    if stored == init:
        return
    if stored:
        log.warning("%s: init is another checkpoint than at the first start, so the training starts again", run.url)
        for entry in list(run.entries(STATES_FOLDER)):
            run.delete(entry.path)
    # Written last, so that a process that is killed before deletes the remaining states at its next start.
    run.write(INIT_FILE, init.encode(), durable=True)


def check_code_digest(digest: str, run: Store) -> None:
    """Store the digest of the code of a training at its first start, and compare it later.

    Raises:
        ConfigError: when the code has changed since, so that the states are of another network.
    """
    if not run.exists(CODE_FILE):
        run.write(CODE_FILE, digest.encode(), durable=True)
    elif run.read(CODE_FILE).decode() != digest:
        raise ConfigError(
            f"{run.url}: the code of the architecture has changed since this training began. Choose another name, or delete "
            "this folder"
        )


def read_newest_history(run: Store) -> list[EpochFigures]:
    """Read the history of the newest intact state, whose length is the number of completed epochs.

    Returns:
        An empty list if there is no state.

    Raises:
        StorageError: when all states are damaged.
    """
    epochs = stored_epochs(run)
    for epoch in epochs:
        if state := read_state(run, epoch):
            return state[1]
        log.warning("%s is damaged and is ignored", run.uri(state_path(epoch, "safetensors")))
    if epochs:
        raise StorageError(f"{run.uri(STATES_FOLDER)}: all states are damaged. To start again, delete {run.url}")
    return []


def save_state(state: State, run: Store, fencing_token: int) -> None:
    """Write a state, and delete states that are no longer needed.

    The best of the earlier epochs stays, because it is the best one if this state is damaged.

    Args:
        state: the state after an epoch.
        run: the folder of the training.
        fencing_token: of the lease on the folder.

    Raises:
        OutputHeld: when another training took over the folder.
        StorageError: when the state cannot be written.
    """
    check_newest(run, fencing_token)
    data = state.to_bytes()
    content = {"sha256": hashlib.sha256(data).hexdigest(), "history": state.history}
    run.write(state_path(state.epoch, "safetensors"), data, durable=True)
    run.write(state_path(state.epoch, "json"), json.dumps(content).encode(), durable=True)
    epochs = stored_epochs(run)
    needed = {*epochs[:KEPT_STATES], *(best_epoch(past) for past in (state.history, state.history[:-1]) if past)}
    for epoch in epochs:
        if epoch not in needed:
            run.delete(state_path(epoch, "json"))
            run.delete(state_path(epoch, "safetensors"))


def best_epoch(history: list[EpochFigures]) -> int:
    """Return the epoch whose average is exported; of equal epochs the later one, which learned at a lower rate.

    This is the epoch with the lowest validation loss if the objective has one (for `compress`, the rate counts as well),
    else the one with the highest validation PSNR in hundredths of a decibel, because smaller differences are chance.
    """

    def quality(line: EpochFigures) -> float:
        return -line["valid_loss"] if "valid_loss" in line else round(line["valid_psnr_db"], 2)

    return int(max(history, key=lambda line: (quality(line), line["epoch"]))["epoch"])
