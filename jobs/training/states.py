"""What a training goes on from: states in `OUTPUT/runs/NAME-HASH/states/`, one for an epoch; the newest, and the best.

A state is `epoch-00012.safetensors` and, written after it, `epoch-00012.json` with its digest: where the second is, the
first is whole. The history of all epochs is part of a state, so that what is drawn from it holds each epoch once, however
often a training was cut off.
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

from imagemill.models.autoencoder import Autoencoder
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.lease import check_newest
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.train")
FOLDER = "states"
INIT = "init.sha256"
"""The digest of the weights that the states began with."""
NEWEST_KEPT = 2
"""The newest, and the one before it should the newest turn out to be damaged."""

Line = dict[str, Any]
"""The figures of an epoch: a line of metrics.jsonl."""


@dataclass
class State:
    """A model, the average that is shipped, AdamW's moments, and where the training is."""

    model: Autoencoder
    average: AveragedModel
    optimizer: torch.optim.AdamW
    step: int = 0
    history: list[Line] = field(default_factory=list)

    @classmethod
    def begin(cls, model: Autoencoder, ema_decay: float, weight_decay: float) -> "State":
        """The state of a training before its first step."""
        # The average is looked at and never trained: `conv`, for one, notes in training how large its codes become.
        decay = moving_average(ema_decay, lambda: state.step)
        average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True).eval()
        state = cls(model, average, torch.optim.AdamW(model.parameters(), weight_decay=weight_decay, betas=(0.9, 0.99)))
        return state

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    def share(self, epochs: int, steps_per_epoch: int) -> float:
        """How much of a training of so many epochs is done, in [0,1].

        Epochs that are done count as such: with another number of workers they had another number of steps.
        """
        steps = self.step - (self.history[-1]["step"] if self.history else 0)
        return (self.epoch * steps_per_epoch + steps) / (epochs * steps_per_epoch)

    def to_bytes(self) -> bytes:
        """As safetensors; no pickles even here."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        return safetensors.torch.save({k: v.cpu().contiguous() for k, v in tensors.items()})

    def load(self, data: bytes, history: list[Line]) -> None:
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key, value in safetensors.torch.load(data).items():
            group, _, name = key.partition(".")
            groups[group][name] = value
        self.model.load_state_dict(groups["model"])
        self.average.load_state_dict(groups["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimizer"].items():
            index, _, name = key.partition(".")
            # As the weights lie, or each step would shuffle them.
            layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
            moments.setdefault(int(index), {})[name] = value.contiguous(memory_format=layout)
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.history = history
        self.step = history[-1]["step"]


def moving_average(decay: float, updates: Callable[[], int]) -> Callable[[Any, Any, Any], None]:
    """Exponential average whose memory grows with the number of updates, so that early ones do not linger.

    The number is asked for on the host: the tensor that torch counts in would make a GPU wait at each step.
    """

    @torch.no_grad()
    def average(means: Any, values: Any, _: Any) -> None:
        keep = min(decay, (1 + updates()) / (10 + updates()))
        torch._foreach_lerp_(means, values, 1 - keep)

    return average


def average_of(data: bytes) -> dict[str, Tensor]:
    """The averaged weights of a state."""
    prefix = "average.module."
    return {k.removeprefix(prefix): v for k, v in safetensors.torch.load(data).items() if k.startswith(prefix)}


def path_of(epoch: int, extension: str) -> str:
    return f"{FOLDER}/epoch-{epoch:05d}.{extension}"


def epochs_kept(run: Store) -> list[int]:
    """Epochs whose state is complete, newest first. Raises: StorageError."""
    names = [entry.path.rpartition("/")[2] for entry in run.entries(FOLDER)]
    return sorted((int(name[6:-5]) for name in names if name.startswith("epoch-") and name.endswith(".json")), reverse=True)


def read_state(run: Store, epoch: int) -> tuple[bytes, list[Line]] | None:
    """The tensors of a state and its history; None when it is not what was written."""
    try:
        data = run.read(path_of(epoch, "safetensors"))
        content = json.loads(run.read(path_of(epoch, "json")))
    except (FileNotFoundError, ValueError):
        return None
    return (data, content["history"]) if hashlib.sha256(data).hexdigest() == content["sha256"] else None


def kept_init(run: Store) -> str | None:
    """The digest of the weights that a run began with; None before its first start."""
    return run.read(INIT).decode() if run.exists(INIT) else None


def begin_with(init: str, run: Store) -> None:
    """Keep the digest of the weights that a run begins with; states that began with others are deleted."""
    kept = kept_init(run)
    if kept == init:
        return
    if kept:
        log.warning("%s: init is another checkpoint than it was: this trains anew", run.url)
        for entry in list(run.entries(FOLDER)):
            run.delete(entry.path)
    # Last: who is killed before it deletes the rest the next time.
    run.write(INIT, init.encode(), durable=True)


def newest_history(run: Store) -> list[Line]:
    """The history of the newest intact state: its length is the epoch to go on from. Empty when there is no state.

    Raises: StorageError when there are states but all are damaged.
    """
    kept = epochs_kept(run)
    for epoch in kept:
        if state := read_state(run, epoch):
            return state[1]
        log.warning("%s is damaged: it is passed over", run.uri(path_of(epoch, "safetensors")))
    if kept:
        raise StorageError(f"{run.uri(FOLDER)}: no state is intact. To train anew, delete {run.url}")
    return []


def keep(state: State, run: Store, fencing_token: int) -> None:
    """Write a state, and delete those that nobody needs any more.

    The best of the epochs before stays too: should this state turn out to be damaged, it is the best one again.

    Args: fence: of the training that holds `run`. Raises: OutputHeld when another one took it; StorageError.
    """
    check_newest(run, fencing_token)
    data = state.to_bytes()
    content = {"sha256": hashlib.sha256(data).hexdigest(), "history": state.history}
    run.write(path_of(state.epoch, "safetensors"), data, durable=True)
    run.write(path_of(state.epoch, "json"), json.dumps(content).encode(), durable=True)
    kept = epochs_kept(run)
    needed = {*kept[:NEWEST_KEPT], *(best_epoch(past) for past in (state.history, state.history[:-1]) if past)}
    for epoch in kept:
        if epoch not in needed:
            run.delete(path_of(epoch, "json"))
            run.delete(path_of(epoch, "safetensors"))


def best_epoch(history: list[Line]) -> int:
    """The epoch whose average is shipped: of the least validation loss where the task gives one (compress: rate counts as
    well), else of the highest validation PSNR; the later one of equals."""

    def worth(line: Line) -> float:
        return -line["valid_loss"] if "valid_loss" in line else line["valid_psnr_db"]

    return int(max(history, key=lambda line: (worth(line), line["epoch"]))["epoch"])
