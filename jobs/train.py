"""The training job for all tasks: Ray Data reads and crops images, Ray Train workers train, and a checkpoint is written."""

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
from imagemill.jobs.training.checks import (
    build_trainable_model,
    check_output_outside_inputs,
    check_overwrite,
    read_init_digest,
    read_initial_weights,
)
from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.crops import build_crop_dataset, read_centre_crops
from imagemill.jobs.training.curves import CURVES, PREVIEWS, draw_curves, make_previews
from imagemill.jobs.training.images import Images, open_inputs, prepare_images, read_images
from imagemill.jobs.training.metrics import METRICS
from imagemill.jobs.training.network import NetworkPlan, contract_of, read_code, save_checkpoint
from imagemill.jobs.training.placement import choose_workers, training_nodes
from imagemill.jobs.training.progress import run_with_progress
from imagemill.jobs.training.states import (
    EpochFigures,
    average_weights,
    best_epoch,
    check_code_digest,
    read_newest_history,
    read_state,
    store_init_digest,
)
from imagemill.jobs.training.worker import Diverged, WorkerTask, train_worker
from imagemill.models import checkpoint as checkpoints
from imagemill.models.autoencoder import Network
from imagemill.models.batches import to_float_batch
from imagemill.models.card import Card
from imagemill.models.code_check import source_digest
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import OBJECTIVES
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.config import validate
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.user_code import UserCode, permitted

log = logging.getLogger("imagemill.train")
FINISHING_IMAGES = 1500
"""Largest number of training images for `Objective.finish`."""
RETRIES = 3
"""Number of restarts of the workers after one of them died or failed."""


def show_training(values: dict[str, Any], origin: str, overwrite: bool = False) -> None:
    """Train a checkpoint and print its figures and files.

    Args:
        values: the config.
        origin: where the config comes from, for error messages.
        overwrite: replace a checkpoint that no training wrote.
    """
    config = validate(TrainConfig, values, origin)
    card = train(config, overwrite)
    output, run = open_output(config), open_run(config)
    figures = ", ".join(f"{k} {v:g}" for k, v in card.metrics[0].items() if k != "set")
    print(f"{output.uri(card.name)}: epoch {card.training['best_epoch']} of {card.training['epochs']}, {figures}")
    print(f"{run.uri(METRICS)}, {run.uri(CURVES)}")
    if card.training["left_out"]:
        print(read_images(run).left_out())
    if config.code:
        print(f"next: imagemill {card.task} PHOTOS OUTPUT --checkpoint {output.uri(card.name)} --code {config.code}")


def open_output(config: TrainConfig) -> Store:
    """Open OUTPUT."""
    return Store(str(config.output), config.storage)


def open_run(config: TrainConfig) -> Store:
    """Open OUTPUT/runs/NAME-HASH, the folder of states and figures of a config."""
    return Store(f"{open_output(config).url}/runs/{config.name}-{config.digest()[:12]}", config.storage)


def train(config: TrainConfig, overwrite: bool = False) -> Card:
    """Train, or resume the training of the same config, and write the checkpoint folder `OUTPUT/NAME`.

    The checkpoint contains the averaged weights of the best epoch (`states.best_epoch`). The newest states stay in
    `OUTPUT/runs/NAME-HASH/`, next to metrics.jsonl, event files and curves.png. A completed config is not trained again,
    even if there are new images, unless `init` is another checkpoint.

    Args:
        config: the training.
        overwrite: replace a checkpoint that no training wrote.

    Raises:
        ConfigError: when the config is invalid.
        CheckpointError: when `init` cannot be read.
        OutputHeld: when another training is running in the same folder.
        StorageError: when a location cannot be read or written.
        TooManyRejects: when more images than `max_broken_fraction` cannot be read.
        RunFailed: when the training diverges (the best epoch so far is written), or workers fail repeatedly.
    """
    code = read_code(config)
    with permitted(code):
        return train_network(config, code, overwrite)


def train_network(config: TrainConfig, code: UserCode | None, overwrite: bool) -> Card:
    """Do the work of `train`, while the import of `code` is permitted."""
    model = build_trainable_model(config)
    inputs = open_inputs(config)
    check_output_outside_inputs(inputs, open_output(config))
    run = open_run(config)
    if not overwrite:
        check_overwrite(Store(open_output(config).uri(config.name), config.storage), run)
    init = read_init_digest(config, run)
    with Lease(run) as lease:
        if init:
            store_init_digest(init, run)
        if code:
            check_code_digest(source_digest(config.architecture), run)
        done, diverged = len(read_newest_history(run)), None
        if done == config.epochs:
            log.info("all %s are already trained; change the config to train again", number(done, "epoch"))
        else:
            # A state contains them already.
            weights = None if done else read_initial_weights(config)
            with connected(config.address):
                # One progress bar replaces Ray Data's bars and logs of its plan.
                ray.data.DataContext.get_current().enable_progress_bars = False
                logging.getLogger("ray.data").setLevel(logging.ERROR)
                try:
                    images = prepare_images(config, inputs, run)
                    network = NetworkPlan(code, contract_of(model), weights)
                    diverged = run_training(config, inputs, images, lease, network, done)
                except (TrainingFailedError, RayError) as e:
                    raise training_error(config, e) from None
        history = read_newest_history(run)
        divergence = RunFailed(divergence_message(config, diverged, len(history))) if diverged else None
        if divergence and not history:
            raise divergence
        lease.check_held()
        card = export_checkpoint(config, inputs, run, model, history, init)
        if divergence:
            raise divergence
    return card


def run_training(
    config: TrainConfig, inputs: list[Input], images: Images, lease: Lease, network: NetworkPlan, done: int
) -> Diverged | None:
    """Train the remaining epochs on the connected Ray.

    Args:
        config: the training.
        inputs: its opened inputs.
        images: its images.
        lease: the lease on the folder of states.
        network: how workers build the network.
        done: number of completed epochs.

    Returns:
        The step at which the training diverged, or None.

    Raises:
        ConfigError: when there are too few crops for one step.
        TrainingFailedError: when Ray gives up.
        RayError: when Ray fails.
    """
    training, validation, left_out = (images.of(use) for use in ("training", "validation", "left out"))
    gpus, workers, share = choose_workers(config, training_nodes())
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
    course = WorkerTask(
        config=config,
        run=lease.output,
        fencing_token=lease.fencing_token,
        inputs=inputs,
        validation=validation,
        left_out=len(left_out),
        network=network,
        steps_per_epoch=steps,
        threads=max(1, int(share)),
        shuffle=min(2048, max(config.batch_size, usable // workers // 2)),
        progress_key=f"train-{secrets.token_hex(8)}",
    )
    # A worker with a GPU mostly waits for it, so its CPUs are left to the tasks that read and crop.
    cpus = min(2.0, share * 0.5) if gpus else share * 0.5
    with tempfile.TemporaryDirectory() as unused:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"course": course},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": cpus}),
            # Ray's own record of a run lies nowhere: states are ours, and only whole ones count (see DECISIONS.md).
            run_config=RunConfig(name=config.name, storage_path=unused, failure_config=FailureConfig(max_failures=RETRIES)),
            datasets={"train": build_crop_dataset(training, inputs, config, min(1.0, share * 0.25))},
        )
        diverged: Diverged | None = run_with_progress(trainer.fit, course.progress_key, config.epochs, steps).return_value
    return diverged


def training_error(config: TrainConfig, error: BaseException) -> Exception:
    """Convert an error of Ray Train to one that names its innermost cause."""
    while True:
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = failures[0] if failures else None
        for name in ("controller_failure", "_base_exc", "cause", "__cause__"):
            inner = inner or getattr(error, name, None)
        if inner is None:
            break
        error = inner
    again = f"after {RETRIES} restarts. Run the same command again to continue from the last state"
    if isinstance(error, OutputHeld):
        return OutputHeld(str(error))
    if isinstance(error, store_failures(StorageError)):
        return StorageError(f"training {config.name}: {reason(error)}, {again}")
    return RunFailed(f"training {config.name}: {reason(error)}, {again}")


def divergence_message(config: TrainConfig, diverged: Diverged, epochs: int) -> str:
    """Describe in one line where a training diverged, and what to do."""
    place = f"step {diverged.step} of epoch {diverged.epoch}" if diverged.step else f"the end of epoch {diverged.epoch}"
    result = (
        f"{config.output}/{config.name} contains the best of {number(epochs, 'epoch')}"
        if epochs
        else "no epoch was completed"
    )
    return (
        f"training {config.name} diverged in {place}: {diverged.reason}; {result}. Lower learning_rate "
        f"({config.learning_rate:g}) or clip_norm ({config.clip_norm:g})"
    )


def finishing_images(inputs: list[Input], images: Images, stride: int) -> Iterator[Tensor]:
    """Yield training images (1,3,h,w) float in [0,1] for `Objective.finish`; nothing is read before the first is needed."""
    for rgb in read_centre_crops(inputs, images.of("training"), stride, max_images=FINISHING_IMAGES):
        yield to_float_batch([rgb], stride, "cpu")


def export_checkpoint(
    config: TrainConfig, inputs: list[Input], run: Store, model: Network, history: list[EpochFigures], init: str | None
) -> Card:
    """Write the averaged weights of the best epoch as a checkpoint folder, and curves.png.

    A checkpoint of the same epoch is left unchanged, because its card may have new metrics, and keeps its date.

    Args:
        config: the training.
        inputs: its opened inputs.
        run: the folder of states.
        model: a model of the architecture, whose weights are replaced.
        history: the figures of all completed epochs.
        init: digest of the weights that the training started from.

    Raises:
        StorageError: when the state of the best epoch is damaged, or the checkpoint cannot be written.
    """
    best = best_epoch(history)
    line, url, images = history[best - 1], open_output(config).uri(config.name), read_images(run)
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
    existing = read_intact_card(url, config)
    if existing and training.items() <= existing.training.items() and metrics in existing.metrics:
        return existing
    state = read_state(run, best)
    if state is None:
        raise StorageError(f"{run.url}: the state of the best epoch, {best}, is damaged. Delete the folder to train again")
    model.load_state_dict(average_weights(state[0]))
    model.eval().requires_grad_(False)
    OBJECTIVES[config.task].finish(model, finishing_images(inputs, images, model.output_stride))
    crops = read_centre_crops(inputs, images.of("validation"), model.output_stride, max_images=PREVIEWS)
    title = f"{config.name}: {config.task} with {config.architecture}, epoch {best} of {len(history)} is the best"
    run.write(CURVES, draw_curves(history, make_previews(OBJECTIVES[config.task], model, crops), title))
    short = [line["epoch"] for line in history if line["steps"] < line.get("planned_steps", 0)]
    if short:
        log.warning("epochs %s had fewer steps than planned, because images could no longer be read", short)
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
    return save_checkpoint(url, config, model, card)


def read_intact_card(url: str, config: TrainConfig) -> Card | None:
    """Return the card of a checkpoint whose weights match it; None if there is no such checkpoint."""
    options = config.storage.options_for(url)
    try:
        card = checkpoints.read_card(url, options)
        checkpoints.read_weights(url, card, options)
    except CheckpointError:
        return None
    return card
