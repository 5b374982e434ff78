"""The work of each Ray Train worker: steps of an epoch, a validation, a state."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from torch import Tensor, nn

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.crops import read_centre_crops
from imagemill.jobs.training.metrics import write_metrics
from imagemill.jobs.training.network import NetworkPlan, build_network
from imagemill.jobs.training.states import EpochFigures, State, read_newest_history, read_state, save_state
from imagemill.jobs.training.step import Step, TaskLoss
from imagemill.models.autoencoder import Network
from imagemill.models.batches import to_float_batch
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.precision import Precision, fastest_dtype
from imagemill.pipeline.cluster.ray_channel import RayChannel
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.user_code import permitted

GPU_STEPS = 20
"""Steps after which figures are copied from a GPU; each copy makes the GPU wait for the host."""
PUBLISH_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerTask:
    """What a worker needs to know about a training.

    Attributes:
        run: the folder OUTPUT/runs/NAME-HASH.
        fencing_token: of the lease on the folder.
        validation: rows of the validation images.
        left_out: number of images that are not used.
        network: how to build the network.
        steps_per_epoch: steps of each worker in an epoch.
        threads: torch threads of a worker on CPUs.
        shuffle: crops in the buffer that a worker draws its batches from.
        progress_key: the key under which rank 0 publishes its progress.
    """

    config: TrainConfig
    run: Store
    fencing_token: int
    inputs: list[Input]
    validation: pa.Table
    left_out: int
    network: NetworkPlan
    steps_per_epoch: int
    threads: int
    shuffle: int
    progress_key: str


@dataclass(frozen=True)
class Diverged:
    """The result of a worker whose figures are no longer finite. Not an exception, because Ray would retry it.

    Attributes:
        epoch: the epoch that failed, counted from 1.
        step: the step within the epoch; 0 if the validation failed.
        reason: the figures that are not finite.
    """

    epoch: int
    step: int
    reason: str


def learning_rate(step: int, share: float, config: TrainConfig) -> float:
    """Return the learning rate: a linear warm-up over steps, times half a cosine over the training that ends at 0.

    Cosine annealing: Loshchilov and Hutter 2017.

    Args:
        step: completed steps.
        share: completed share of the training, in [0,1].
        config: with learning_rate and warmup_steps.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class TrainWorker:
    """One worker of a training; all workers do the same steps on different crops."""

    def __init__(self, course: WorkerTask) -> None:
        # The driver and Ray's controller import this file, too, and need no torchvision.
        from imagemill.jobs.training.augmentation import augment_batch, build_augmentation

        context = ray.train.get_context()
        self.course, self.config = course, course.config
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(course.threads)
        # The dtype of rank 0 for all workers: gradients in float16 are scaled, and gradients of all workers are added.
        dtype = ray.train.collective.broadcast_from_rank_zero(fastest_dtype(self.device.type))
        torch.manual_seed(self.config.seed)
        model = build_network(self.config, course.network.contract).to(self.device)
        if course.network.weights is not None:
            # A network that has more layers than `init` keeps its random weights there.
            model.load_state_dict(model.state_dict() | course.network.weights)
        OBJECTIVES[self.config.task].freeze(model)
        model = model.to(memory_format=torch.channels_last)
        loss_of: nn.Module = TaskLoss(self.config.task, model)
        if self.workers > 1:
            # DistributedDataParallel cannot broadcast channels-last buffers. Only the buffers of rank 0 are saved.
            kwargs = {"broadcast_buffers": False}
            loss_of = ray.train.torch.prepare_model(loss_of, parallel_strategy_kwargs=kwargs)
        self.augment = partial(augment_batch, build_augmentation(self.config.augment))
        self.state = State.begin(model, self.config.ema_decay, self.config.weight_decay, self.config.encoder_rate)
        self.step = Step(loss_of, self.state, Precision(self.device.type, dtype), self.config.clip_norm)
        self.resume()
        self.began, self.resumed_at, self.done_before = time.monotonic(), self.state.epoch, self.share()
        self.published = 0.0
        self.crops = read_centre_crops(course.inputs, course.validation, model.output_stride) if self.rank == 0 else []

    def resume(self) -> None:
        """Load the newest intact state, the same one on every worker.

        Raises:
            OSError: when this worker cannot read the state.
        """
        newest = len(read_newest_history(self.course.run)) if self.rank == 0 else 0
        epoch = ray.train.collective.broadcast_from_rank_zero(newest)
        if epoch:
            state = read_state(self.course.run, epoch)
            if state is None:
                raise OSError(f"the state of epoch {epoch} cannot be read")
            self.state.load(*state)

    def share(self) -> float:
        """Return the completed share of the training, in [0,1]."""
        return self.state.share(self.config.epochs, self.course.steps_per_epoch)

    def batches(self) -> Iterator[Tensor]:
        """Yield the batches (B,3,crop,crop) uint8 of an epoch, on the device.

        Every worker takes the same number of batches, because each step waits for all workers.
        """
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
            yield self.augment(batch["image"].permute(0, 3, 1, 2))

    def figures(self, generator: torch.Generator) -> Iterator[dict[str, float]]:
        """Do the steps of an epoch and yield the figures of each, in order."""
        waiting: list[dict[str, Tensor]] = []
        for x_BCHW in self.batches():
            rate = learning_rate(self.state.step, self.share(), self.config)
            waiting.append(self.step(x_BCHW, generator, rate))
            if len(waiting) == (1 if self.device.type == "cpu" else GPU_STEPS):
                yield from fetch_scalars(waiting)
                waiting = []
        if waiting:
            yield from fetch_scalars(waiting)

    def epoch(self) -> EpochFigures | Diverged:
        """Train one epoch; return the means of this worker's figures.

        Raises:
            OSError: when no training image can be read any more.
        """
        began, count = time.monotonic(), 0
        seed = self.config.seed + 1000 * self.state.epoch + self.rank
        # The augmentation draws from torch's global generator, damage from its own on the device.
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        sums: Counter[str] = Counter()
        for count, figures in enumerate(self.figures(generator), 1):
            # The gradient is the mean over the workers, so all of them stop at the same step.
            if not math.isfinite(figures.pop("gradient_norm")):
                return Diverged(self.state.epoch + 1, count, f"the loss was {figures['loss']:.4g}, its gradient not finite")
            sums.update(figures)
            self.publish(count, sums["loss"] / count, time.monotonic() - began)
        if not count:
            raise OSError("no crop arrived, because the training images can no longer be read")
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
        """Return the mean figures of the averaged weights on the validation images."""
        averaged = cast(Network, self.state.average.module)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        figures = []
        with torch.inference_mode(), self.device:
            for crop in self.crops:
                x_BCHW = to_float_batch([crop], averaged.output_stride, str(self.device))
                figures.append(OBJECTIVES[self.config.task].validate(averaged, x_BCHW, generator))
        return {f"valid_{k}": float(np.mean([f[k] for f in figures])) for k in figures[0]}

    def publish(self, step: int, loss: float, seconds: float) -> None:
        """Publish the progress for the driver, about once a second."""
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
        RayChannel().publish(self.course.progress_key, shown)


def fetch_scalars(figures: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Copy the scalars of several steps from the device at once."""
    table = torch.stack([torch.stack([v.float() for v in step.values()]) for step in figures]).tolist()
    return [dict(zip(figures[0], row, strict=True)) for row in table]


def train_worker(arguments: dict[str, WorkerTask]) -> Diverged | None:
    """Train the remaining epochs. After each, rank 0 validates the average and writes the state; the others wait."""
    with permitted(arguments["course"].network.code):
        return train_epochs(TrainWorker(arguments["course"]))


def train_epochs(learner: TrainWorker) -> Diverged | None:
    """Do the work of `train_worker`."""
    state = learner.state
    for _ in range(state.epoch, learner.config.epochs):
        began = time.monotonic()
        line = learner.epoch()
        if isinstance(line, Diverged):
            return line
        is_finite = True
        if learner.rank == 0:
            line |= learner.validate()
            is_finite = all(math.isfinite(value) for value in line.values())
        if not ray.train.collective.broadcast_from_rank_zero(is_finite):
            return Diverged(state.epoch + 1, 0, "the figures of the validation are not finite")
        state.history.append({**line, "seconds": time.monotonic() - began, "time": time.time()})
        if learner.rank == 0:
            save_state(state, learner.course.run, learner.course.fencing_token)
            write_metrics(learner.course.run, state.history)
        ray.train.report(line)
    return None
