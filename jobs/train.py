"""The training job: Ray Data reads and crops, Ray Train's workers learn, a checkpoint comes out. One job for every task."""

import logging
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray.data
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from torch import Tensor

from imagemill.jobs.console import number
from imagemill.jobs.training.checks import init_of, initial_weights, refuse_foreign, refuse_nested, rehearsed
from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.crops import Images, crops_of, images_of, inputs_of, kept_images, middle_crops
from imagemill.jobs.training.curves import CURVES, SAMPLES, draw_curves, samples_of
from imagemill.jobs.training.metrics import METRICS
from imagemill.jobs.training.progress import followed
from imagemill.jobs.training.states import Line, average_of, begin_with, best_epoch, newest_history, read_state
from imagemill.jobs.training.worker import Course, Diverged, train_worker
from imagemill.models import checkpoint as checkpoints
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import to_float_batch
from imagemill.models.card import Card, CheckpointError
from imagemill.models.objectives import OBJECTIVES
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.cluster.nodes import nodes_without_cuda
from imagemill.pipeline.cluster.pool import WITHOUT_CUDA, Nodes, node_resources
from imagemill.pipeline.config import validate
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.train")
FINISHING_IMAGES = 1500
"""Training images that a task gets to finish a model with, at most."""
RETRIES = 3
"""Times that the workers are started again after one of them died or failed."""


def show_training(values: dict[str, Any], origin: str, overwrite: bool = False) -> None:
    """Train what the YAML says and print what came out and where it is.

    Args: overwrite: replace a checkpoint that no training wrote.
    """
    config = validate(TrainConfig, values, origin)
    card = train(config, overwrite)
    output, run = output_of(config), run_of(config)
    figures = ", ".join(f"{k} {v:g}" for k, v in card.metrics[0].items() if k != "set")
    print(f"{output.uri(card.name)}: epoch {card.training['best_epoch']} of {card.training['epochs']}, {figures}")
    print(f"{run.uri(METRICS)}, {run.uri(CURVES)}")
    if card.training["left_out"]:
        print(kept_images(run).left_out())


def output_of(config: TrainConfig) -> Store:
    return Store(str(config.output), config.storage)


def run_of(config: TrainConfig) -> Store:
    """Where states and figures of this config are: OUTPUT/runs/NAME-HASH."""
    return Store(f"{output_of(config).url}/runs/{config.name}-{config.digest()[:12]}", config.storage)


def train(config: TrainConfig, overwrite: bool = False) -> Card:
    """Train, resuming what the same config left, and write the checkpoint folder `OUTPUT/NAME`.

    What is shipped are the averaged weights of the best epoch (`states.best_epoch`); the newest state stays in
    `OUTPUT/runs/NAME-HASH/`, with metrics.jsonl, event files and curves.png. A config whose epochs are all done is not
    trained again, whatever images came since; it is when `init` is another checkpoint since.

    Args: overwrite: replace a checkpoint that no training wrote.

    Raises: ConfigError, CheckpointError, OutputHeld and StorageError before anything starts; TooManyRejects when more images
    than `max_broken_fraction` cannot be read; RunFailed when it diverges (the best epoch so far is written all the same) or
    workers fail again and again.
    """
    model = rehearsed(config)
    inputs = inputs_of(config)
    refuse_nested(inputs, output_of(config))
    run = run_of(config)
    if not overwrite:
        refuse_foreign(Store(output_of(config).uri(config.name), config.storage), run)
    init = init_of(config, run)
    with Lease(run) as lease:
        if init:
            begin_with(init, run)
        done, diverged = len(newest_history(run)), None
        if done == config.epochs:
            log.info("%s done before, which is all; a changed config trains anew", number(done, "epoch"))
        else:
            # A state has all that is needed of them.
            weights = None if done else initial_weights(config)
            with connected(config.address):
                # Ray Data's own progress and plan lines give way to one honest bar.
                ray.data.DataContext.get_current().enable_progress_bars = False
                logging.getLogger("ray.data").setLevel(logging.ERROR)
                try:
                    diverged = learn(config, inputs, images_of(config, inputs, run), lease, weights, done)
                except (TrainingFailedError, RayError) as e:
                    raise failure(config, e) from None
        history = newest_history(run)
        trouble = RunFailed(complaint(config, diverged, len(history))) if diverged else None
        if trouble and not history:
            raise trouble
        lease.check_held()
        card = ship(config, inputs, run, model, history, init)
        if trouble:
            raise trouble
    return card


def learn(
    config: TrainConfig, inputs: list[Input], images: Images, lease: Lease, weights: dict[str, Tensor] | None, done: int
) -> Diverged | None:
    """Train the epochs that are not done, on the Ray that is connected.

    Raises: ConfigError; what Ray raises when it gives up.
    """
    training, validation, left_out = (images.of(use) for use in ("training", "validation", "left out"))
    gpus, workers, share = workers_for(config, training_nodes())
    usable = len(training) * config.crops_per_image
    steps = usable // (workers * config.batch_size)
    if not steps:
        raise ConfigError(
            f"batch_size = {config.batch_size} for {number(workers, 'worker')}: of {number(len(training), 'image')} with "
            f"crops_per_image = {config.crops_per_image} there are {number(usable, 'crop')}, not enough for one step"
        )
    log.info("%s to train on, %s to validate on", number(len(training), "image"), f"{len(validation):,}")
    if len(left_out):
        log.warning("%s", images.left_out())
    what = [number(config.epochs, "epoch"), number(steps, "step"), number(workers, "worker")]
    log.info("%s of %s on %s%s", *what, f"; done: {done}" if done else "")
    course = Course(
        config=config,
        run=lease.output,
        fencing_token=lease.fencing_token,
        inputs=inputs,
        validation=validation,
        left_out=len(left_out),
        init=weights,
        steps_per_epoch=steps,
        threads=max(1, int(share)),
        shuffle=min(2048, max(config.batch_size, usable // workers // 2)),
        progress_key=f"train-{secrets.token_hex(8)}",
    )
    # A GPU's worker mostly waits for it; the CPUs are for those who read and crop.
    cpus = min(2.0, share * 0.5) if gpus else share * 0.5
    with tempfile.TemporaryDirectory() as unused:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"course": course},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": cpus}),
            # Ray's own record of a run lies nowhere: states are ours, and only whole ones count (see DECISIONS.md).
            run_config=RunConfig(name=config.name, storage_path=unused, failure_config=FailureConfig(max_failures=RETRIES)),
            datasets={"train": crops_of(training, inputs, config, min(1.0, share * 0.25))},
        )
        diverged: Diverged | None = followed(trainer.fit, course.progress_key, config.epochs, steps).return_value
    return diverged


def training_nodes() -> Nodes:
    """(CPUs, GPUs) of each node; no GPUs when torch finds no CUDA device on one of the GPU nodes.

    Ray chooses the nodes of the workers, and NCCL needs a CUDA device on every one.
    """
    nodes = node_resources()
    if not any(gpu for _, gpu in nodes) or not (blind := nodes_without_cuda()):
        return nodes
    log.warning("%s (%s): training runs on the CPUs, with gloo between its workers", WITHOUT_CUDA, ", ".join(blind))
    return [(cpu, 0.0) for cpu, _ in nodes]


def workers_for(config: TrainConfig, nodes: Nodes) -> tuple[bool, int, float]:
    """Whether there are GPUs, how many workers, and each one's share of the CPUs, among nodes with (CPUs, GPUs).

    Half of a share, or more, is left to the stage that reads and crops.
    """
    # A node without CPUs, as a head is told to be, gets no workers.
    gpus = int(sum(gpu for cpu, gpu in nodes if cpu))
    workers = min(config.workers, gpus) if gpus else config.workers
    # A worker lives on one node, among as many as the node has GPUs for.
    most = min((cpu / max(1.0, gpu) for cpu, gpu in nodes if cpu and (gpu or not gpus)), default=1.0)
    return bool(gpus), workers, min(sum(cpu for cpu, _ in nodes) / workers, most)


def failure(config: TrainConfig, error: BaseException) -> Exception:
    """What a person can do about an error that Ray Train brings back: its innermost cause."""
    while True:
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = failures[0] if failures else None
        for name in ("controller_failure", "_base_exc", "cause", "__cause__"):
            inner = inner or getattr(error, name, None)
        if inner is None:
            break
        error = inner
    again = f"after {RETRIES} new starts. The same command goes on from its last state"
    if isinstance(error, OutputHeld):
        return OutputHeld(str(error))
    if isinstance(error, (StorageError, *STORE_FAILURES)):
        return StorageError(f"training {config.name}: {reason(error)}, {again}")
    return RunFailed(f"training {config.name}: {reason(error)}, {again}")


def complaint(config: TrainConfig, diverged: Diverged, epochs: int) -> str:
    """One line about a training that diverged."""
    where = f"step {diverged.step} of epoch {diverged.epoch}" if diverged.step else f"the end of epoch {diverged.epoch}"
    kept = (
        f"{config.output}/{config.name} holds the best of {number(epochs, 'epoch')}" if epochs else "no epoch was finished"
    )
    return (
        f"training {config.name} diverged in {where}: {diverged.what}; {kept}. Lower learning_rate (it is "
        f"{config.learning_rate:g}) or clip_norm ({config.clip_norm:g})"
    )


def finishing_images(inputs: list[Input], images: Images, stride: int) -> Iterator[Tensor]:
    """Training images (1,3,h,w) float in [0,1] for `Objective.finish`; read only when they are asked for."""
    for rgb in middle_crops(inputs, images.of("training"), stride, most=FINISHING_IMAGES):
        yield to_float_batch([rgb], stride, "cpu")


def ship(
    config: TrainConfig, inputs: list[Input], run: Store, model: Autoencoder, history: list[Line], init: str | None
) -> Card:
    """The averaged weights of the best epoch as a checkpoint folder, and the curves.

    What was shipped before stays as it is: figures may have been measured since, and its date is that of the training.

    Args: init: digest of the weights that it began with. Raises: StorageError.
    """
    best = best_epoch(history)
    line, url, images = history[best - 1], output_of(config).uri(config.name), kept_images(run)
    training = {
        "config_sha256": config.digest(),
        "init_sha256": init,
        "images": len(images.of("training")),
        "left_out": len(images.of("left out")),
        "epochs": len(history),
        "best_epoch": best,
        "steps": line["step"],
        "minutes": round(sum(line["seconds"] for line in history) / 60, 1),
    }
    held_out = {k[6:]: round(v, 3) for k, v in line.items() if k.startswith("valid_")}
    metrics = {"set": "held-out training images", **held_out}
    there = whole(url, config)
    if there and training.items() <= there.training.items() and metrics in there.metrics:
        return there
    state = read_state(run, best)
    if state is None:
        raise StorageError(f"{run.url}: the state of epoch {best}, the best one, is damaged")
    model.load_state_dict(average_of(state[0]))
    model.eval().requires_grad_(False)
    OBJECTIVES[config.task].finish(model, finishing_images(inputs, images, model.output_stride))
    crops = middle_crops(inputs, images.of("validation"), model.output_stride, most=SAMPLES)
    title = f"{config.name}: {config.task} with {config.architecture}, epoch {best} of {len(history)} is the best"
    run.write(CURVES, draw_curves(history, samples_of(OBJECTIVES[config.task], model, crops), title))
    short = [line["epoch"] for line in history if line["steps"] < line.get("planned_steps", 0)]
    if short:
        log.warning("epochs %s had fewer steps than planned: images could no longer be read", short)
    counts = Counter(images.of("training")["source"].to_pylist())
    card = {
        "name": config.name,
        "task": config.task,
        "architecture": config.architecture,
        "parameters": config.parameters,
        "preprocessing": {"mode": "RGB", "range": [0, 1], "stride": model.stride},
        "training": {**training, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")},
        "data": ", ".join(f"{number(counts[n], 'image')} of {s.url.rpartition('/')[2]}" for n, s in enumerate(inputs)),
        "metrics": [metrics],
    }
    return checkpoints.save(url, model, card, config.storage.options_for(url))


def whole(url: str, config: TrainConfig) -> Card | None:
    """The card of a checkpoint whose weights are its own; None when there is none."""
    options = config.storage.options_for(url)
    try:
        card = checkpoints.read_card(url, options)
        checkpoints.read_weights(url, card, options)
    except CheckpointError:
        return None
    return card
