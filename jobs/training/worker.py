"""What each Ray Train worker does: epochs of steps, a validation, a state."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from torch import Tensor, nn

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.crops import middle_crops
from imagemill.jobs.training.metrics import write_metrics
from imagemill.jobs.training.states import Line, State, keep, newest_history, read_state
from imagemill.jobs.training.step import Step, TaskLoss
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import to_float_batch
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.precision import Precision, fastest_dtype
from imagemill.pipeline.cluster.tally import publish
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store

# Figures are fetched from a GPU after so many steps: each time it has to wait for the host.
GPU_STEPS = 20
PUBLISH_SECONDS = 1.0


@dataclass(frozen=True)
class Course:
    """What a worker has to know."""

    config: TrainConfig
    run: Store
    """OUTPUT/runs/NAME-HASH."""
    fencing_token: int
    """Of the lease on it."""
    inputs: list[Input]
    validation: pa.Table
    left_out: int
    """Images that are not used."""
    init: dict[str, Tensor] | None
    steps_per_epoch: int
    threads: int
    """Of torch, on a CPU."""
    shuffle: int
    """Crops that a worker draws its batches from."""
    progress_key: str


@dataclass(frozen=True)
class Diverged:
    """What a worker gives back when its figures are no longer finite. No error: Ray would only try it again."""

    epoch: int
    step: int
    """Within the epoch; 0 when it showed in the validation."""
    what: str


def learning_rate(step: int, share: float, config: TrainConfig) -> float:
    """Linear warm-up over steps, then half a cosine over the training, from nothing done, 0, to all, 1, where it is zero.

    (Loshchilov and Hutter 2017.)
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class Learner:
    """One worker's part of a training."""

    def __init__(self, course: Course) -> None:
        context = ray.train.get_context()
        self.course, self.config = course, course.config
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(course.threads)
        # That of rank 0 for all: gradients in float16 are scaled, and the workers add them up.
        dtype = ray.train.collective.broadcast_from_rank_zero(fastest_dtype(self.device.type))
        torch.manual_seed(self.config.seed)
        model = ARCHITECTURES[self.config.architecture](**self.config.parameters).to(self.device)
        if course.init is not None:
            model.load_state_dict(course.init)
        OBJECTIVES[self.config.task].freeze(model)
        model = model.to(memory_format=torch.channels_last)
        loss_of: nn.Module = TaskLoss(self.config.task, model)
        if self.workers > 1:
            # Rank 0's buffers are what is kept; DDP cannot send those that lie channels last, and need not.
            kwargs = {"broadcast_buffers": False}
            loss_of = ray.train.torch.prepare_model(loss_of, parallel_strategy_kwargs=kwargs)
        self.state = State.begin(model, self.config.ema_decay, self.config.weight_decay)
        self.step = Step(loss_of, self.state, Precision(self.device.type, dtype), self.config.clip_norm)
        self.resume()
        self.began, self.resumed_at, self.done_before = time.monotonic(), self.state.epoch, self.share()
        self.published = 0.0
        self.crops = middle_crops(course.inputs, course.validation, model.output_stride) if self.rank == 0 else []

    def resume(self) -> None:
        """Load the newest intact state, the same one on every worker."""
        mine = len(newest_history(self.course.run)) if self.rank == 0 else 0
        epoch = ray.train.collective.broadcast_from_rank_zero(mine)
        if epoch:
            state = read_state(self.course.run, epoch)
            if state is None:
                raise OSError(f"the state of epoch {epoch} cannot be read")
            self.state.load(*state)

    def share(self) -> float:
        """How much of the training is done, in [0,1]."""
        return self.state.share(self.config.epochs, self.course.steps_per_epoch)

    def batches(self) -> Iterator[Tensor]:
        """An epoch's batches (B,3,crop,crop) uint8 on the device; every worker takes the same number: DDP waits for all."""
        shard = ray.train.get_dataset_shard("train")
        batches = shard.iter_torch_batches(
            batch_size=self.config.batch_size,
            device=self.device,
            drop_last=True,
            prefetch_batches=2,
            local_shuffle_buffer_size=self.course.shuffle,
            local_shuffle_seed=self.config.seed + self.state.epoch,
        )
        for _, batch in zip(range(self.course.steps_per_epoch), batches, strict=False):
            yield batch["image"].permute(0, 3, 1, 2)

    def figures(self, generator: torch.Generator) -> Iterator[dict[str, float]]:
        """The steps of an epoch, and the figures of each, in order."""
        waiting: list[dict[str, Tensor]] = []
        for x_BCHW in self.batches():
            rate = learning_rate(self.state.step, self.share(), self.config)
            waiting.append(self.step(x_BCHW, generator, rate))
            if len(waiting) == (1 if self.device.type == "cpu" else GPU_STEPS):
                yield from fetched(waiting)
                waiting = []
        if waiting:
            yield from fetched(waiting)

    def epoch(self) -> Line | Diverged:
        """One pass over the crops; this worker's means of the task's figures."""
        began, count = time.monotonic(), 0
        generator = torch.Generator(self.device).manual_seed(self.config.seed + 1000 * self.state.epoch + self.rank)
        sums: Counter[str] = Counter()
        for count, figures in enumerate(self.figures(generator), 1):
            # The gradient is the mean over the workers: all of them see it fail at the same step.
            if not math.isfinite(figures.pop("gradient_norm")):
                return Diverged(self.state.epoch + 1, count, f"the loss was {figures['loss']:.4g}, its gradient not finite")
            sums.update(figures)
            self.publish(count, sums["loss"] / count, time.monotonic() - began)
        if not count:
            raise OSError("no crop arrived: the training images can no longer be read")
        crops_per_s = count * self.config.batch_size * self.workers / (time.monotonic() - began)
        return {
            "epoch": self.state.epoch + 1,
            "step": self.state.step,
            "steps": count,
            "planned_steps": self.course.steps_per_epoch,
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
            **{f"train_{k}": v / count for k, v in sums.items()},
            "crops_per_s": crops_per_s,
            "images_per_s": crops_per_s / self.config.crops_per_image,
            "left_out": self.course.left_out,
        }

    def validate(self) -> dict[str, float]:
        """Mean figures of the averaged weights on the held-out images."""
        averaged = cast(Autoencoder, self.state.average.module)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        figures = []
        with torch.inference_mode(), self.device:
            for crop in self.crops:
                x_BCHW = to_float_batch([crop], averaged.output_stride, str(self.device))
                figures.append(OBJECTIVES[self.config.task].validate(averaged, x_BCHW, generator))
        return {f"valid_{k}": float(np.mean([f[k] for f in figures])) for k in figures[0]}

    def publish(self, step: int, loss: float, seconds: float) -> None:
        """Hand the driver what it shows, about once a second."""
        if self.rank or time.monotonic() - self.published < PUBLISH_SECONDS:
            return
        self.published, done = time.monotonic(), self.share()
        shown = {
            "resumed_at": self.resumed_at,
            "pid": os.getpid(),
            "epoch": self.state.epoch + 1,
            "epoch_step": step,
            "done": done,
            "loss": loss,
            "psnr_db": self.state.history[-1]["valid_psnr_db"] if self.state.history else None,
            "images_per_s": step * self.config.batch_size * self.workers / self.config.crops_per_image / seconds,
            "left_s": (1 - done) * (self.published - self.began) / (done - self.done_before),
        }
        publish(self.course.progress_key, shown)


def fetched(figures: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Scalars of some steps from the device, in one go."""
    table = torch.stack([torch.stack([v.float() for v in step.values()]) for step in figures]).tolist()
    return [dict(zip(figures[0], row, strict=True)) for row in table]


def train_worker(arguments: dict[str, Course]) -> Diverged | None:
    """Every epoch that is not done: train, validate the average on rank 0, keep the state. The others wait for it."""
    learner = Learner(arguments["course"])
    state = learner.state
    for _ in range(state.epoch, learner.config.epochs):
        began = time.monotonic()
        line = learner.epoch()
        if isinstance(line, Diverged):
            return line
        sound = True
        if learner.rank == 0:
            line |= learner.validate()
            sound = all(math.isfinite(value) for value in line.values())
        if not ray.train.collective.broadcast_from_rank_zero(sound):
            return Diverged(state.epoch + 1, 0, "the validation's figures are not finite")
        state.history.append({**line, "seconds": time.monotonic() - began, "time": time.time()})
        if learner.rank == 0:
            keep(state, learner.course.run, learner.course.fencing_token)
            write_metrics(learner.course.run, state.history)
        ray.train.report(line)
    return None
