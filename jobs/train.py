"""The training job: Ray Data reads and crops, Ray Train's workers learn, a checkpoint comes out. One job for every task."""

import hashlib
import json
import logging
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from pydantic import Field
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models import checkpoint as checkpoints
from models.architectures import ARCHITECTURES
from models.autoencoder import Autoencoder
from models.losses import is_finite
from models.precision import bf16_hardware
from models.tasks import TASKS
from pipeline.cluster import connected
from pipeline.config import Strict, validate
from pipeline.errors import ConfigError, RunFailed, StorageError
from pipeline.pixels import ImageError, decode
from pipeline.sources.folder import list_folder
from pipeline.storage import STORE_FAILURES, StorageConfig, Store, reason

log = logging.getLogger("imagemill.train")
FINISHING_IMAGES = 1500
"""Training images that a task gets to finish a model with, at most."""


class TrainConfig(Strict):
    """What `imagemill train` does."""

    name: str = Field(description="name of the checkpoint", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    task: str
    architecture: str
    parameters: dict[str, Any] = Field(default_factory=dict, description="arguments of the architecture")
    input: list[str] = Field(default_factory=list, description="folders or buckets of clean images")
    output: str | None = None
    init: str | None = Field(None, description="checkpoint whose weights it starts from: bundled name, folder or URL")
    epochs: int = Field(ge=1)
    crop: int = Field(ge=8, description="side of a training crop in pixels")
    crops_per_image: int = Field(8, ge=1)
    augment: Literal["turn", "flip", "none"] = Field(
        "turn", description="crops are flipped and turned by quarters, flipped left to right, or left as they are"
    )
    validation_share: float = Field(0.02, gt=0, lt=1)
    batch_size: int = Field(16, ge=1, description="crops for each worker and step")
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    workers: int = Field(2, ge=1)
    seed: int = 0
    storage: StorageConfig = StorageConfig()
    address: str | None = None

    def digest(self) -> str:
        """Hash of all that changes the result: a run's name carries it, so a changed config never resumes an old run."""
        # Keys that are added later, and left at their defaults, leave the digest as it was.
        content = self.model_dump(exclude={"output", "storage", "address"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class TaskLoss(nn.Module):
    """A task's loss as a module, so that DDP sees one forward pass."""

    def __init__(self, task_name: str, model: Any) -> None:
        super().__init__()
        self.task, self.model = TASKS[task_name], model

    def forward(self, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.task.loss(self.model, x_BCHW, generator)


class Crops:
    """References to random crops (N,crop,crop,3) uint8; a broken or too small image gives none."""

    def __init__(self, stores: list[Store], crop: int, per_image: int, augment: str) -> None:
        self.stores, self.crop, self.per_image, self.augment = stores, crop, per_image, augment

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng()
        crops = []
        for store, path in zip(batch["store"], batch["path"], strict=True):
            try:
                rgb = decode(self.stores[store].read(path)).rgb
            except (ImageError, OSError) as e:
                log.warning("%s left out: %s", path, e)
                continue
            if min(rgb.shape[:2]) >= self.crop:
                crops += [random_crop(rgb, self.crop, self.augment, rng) for _ in range(self.per_image)]
        empty = np.zeros((0, self.crop, self.crop, 3), np.uint8)
        return {"image": np.stack(crops) if crops else empty}


def random_crop(rgb: np.ndarray, crop: int, augment: str, rng: np.random.Generator) -> np.ndarray:
    """A crop at a random place, flipped and turned at random as `augment` allows."""
    y, x = rng.integers(rgb.shape[0] - crop + 1), rng.integers(rgb.shape[1] - crop + 1)
    patch = rgb[y : y + crop, x : x + crop]
    if augment == "turn":
        patch = np.rot90(patch, int(rng.integers(4)))
    return np.ascontiguousarray(patch[:, ::-1] if augment != "none" and rng.integers(2) else patch)


def list_images(config: TrainConfig) -> tuple[list[Store], list[dict[str, Any]], list[dict[str, Any]]]:
    """The stores, and references to training and validation images: the split hangs on the name alone."""
    stores = [Store(url, config.storage) for url in config.input]
    training: list[dict[str, Any]] = []
    validation: list[dict[str, Any]] = []
    for number, store in enumerate(stores):
        for listed in list_folder(store):
            if listed is None or listed.problem:
                continue
            draw = int.from_bytes(hashlib.sha256(listed.rel_path.encode()).digest()[:4]) / 2**32
            reference = {"store": number, "path": listed.rel_path}
            (validation if draw < config.validation_share else training).append(reference)
    if not training or not validation:
        raise ConfigError(f"input: {len(training)} images to train on and {len(validation)} to validate on were found")
    return stores, training, validation


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def initial_weights(config: TrainConfig) -> dict[str, Tensor] | None:
    """The weights that training starts from. Raises: ConfigError when they are of another architecture."""
    if config.init is None:
        return None
    card = checkpoints.read_card(config.init)
    if (card.architecture, card.parameters) != (config.architecture, config.parameters):
        raise ConfigError(f"init = {config.init!r} is {card.architecture} {card.parameters}, not what is to be trained")
    weights: dict[str, Tensor] = checkpoints.build(card, checkpoints.read_weights(config.init, card)).state_dict()
    # Whole numbers are what a task finished the model with: not to be trained, and fitted anew.
    return {name: value for name, value in weights.items() if value.is_floating_point()}


def center_crops(stores: list[Store], references: list[dict[str, Any]], side: int = 256) -> list[Tensor]:
    """Validation images (1,3,h,w) float in [0,1], sides cut to multiples of 32 and to at most `side`."""
    images = []
    for reference in references:
        rgb = decode(stores[reference["store"]].read(reference["path"])).rgb
        h, w = (min(side, n - n % 32) for n in rgb.shape[:2])
        y, x = (rgb.shape[0] - h) // 2, (rgb.shape[1] - w) // 2
        if h and w:
            images.append(torch.from_numpy(rgb[y : y + h, x : x + w].copy()).permute(2, 0, 1)[None].float() / 255)
    return images


@dataclass
class State:
    """What training goes on from: a model, the average that is shipped, AdamW's moments, and where it is."""

    model: Autoencoder
    average: AveragedModel
    optimizer: torch.optim.AdamW
    epoch: int = 0
    step: int = 0

    def save(self, folder: Path, metrics: dict[str, Any]) -> None:
        """As safetensors and JSON; no pickles even here."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps({"epoch": self.epoch, "step": self.step, "metrics": metrics}))

    def load(self, folder: Path) -> None:
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key, value in load_file(folder / "state.safetensors").items():
            group, _, name = key.partition(".")
            groups[group][name] = value
        self.model.load_state_dict(groups["model"])
        self.average.load_state_dict(groups["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimizer"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        progress = json.loads((folder / "state.json").read_text())
        self.epoch, self.step = progress["epoch"], progress["step"]


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential average whose memory grows with the number of updates, so that early ones do not linger."""

    def average(mean: Tensor, value: Tensor, updates: Tensor | int) -> Tensor:
        keep = min(decay, (1 + float(updates)) / (10 + float(updates)))
        return mean.lerp(value.to(mean.dtype), 1 - keep)

    return average


def train_worker(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker does."""
    config = TrainConfig.model_validate(arguments["config"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(arguments["threads"])
    bf16 = bf16_hardware(device.type)
    torch.manual_seed(config.seed)
    model = ARCHITECTURES[config.architecture](**config.parameters).to(device)
    if arguments["init"] is not None:
        model.load_state_dict(arguments["init"])
    model = model.to(memory_format=torch.channels_last)
    loss_of = TaskLoss(config.task, model)
    if workers > 1:
        loss_of = ray.train.torch.prepare_model(loss_of)
    state = State(
        model,
        AveragedModel(model, avg_fn=moving_average(config.ema_decay), use_buffers=True),
        torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, betas=(0.9, 0.99)),
    )
    previous = ray.train.get_checkpoint()
    if previous:
        with previous.as_directory() as folder:
            state.load(Path(folder))
    total = config.epochs * arguments["steps_per_epoch"]
    validation = center_crops(arguments["stores"], arguments["validation"]) if rank == 0 else []
    shard = ray.train.get_dataset_shard("train")
    for epoch in range(state.epoch, config.epochs):
        generator = torch.Generator().manual_seed(config.seed + 1000 * epoch + rank)
        began, seen = time.monotonic(), 0
        sums: Counter[str] = Counter()
        batches = shard.iter_torch_batches(
            batch_size=config.batch_size,
            device="cpu",
            drop_last=True,
            local_shuffle_buffer_size=arguments["shuffle"],
            local_shuffle_seed=config.seed + epoch,
        )
        # Every worker takes the same number of steps: DDP waits for all of them.
        for _, batch in zip(range(arguments["steps_per_epoch"]), batches, strict=False):
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(state.step, total, config)
            x = batch["image"].permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = loss_of(x.to(device), generator)
            if not is_finite(losses["loss"]):
                raise FloatingPointError(f"the loss is {losses['loss'].item()} at epoch {epoch}, step {state.step}")
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.average.update_parameters(model)
            state.step += 1
            seen += len(x)
            sums.update({f"train_{k}": v.item() * len(x) for k, v in losses.items()})
        state.epoch = epoch + 1
        seconds = time.monotonic() - began
        metrics = {k: v / max(1, seen) for k, v in sums.items()}
        metrics |= {"epoch": state.epoch, "seconds": seconds, "crops_per_s": seen * workers / seconds}
        report_epoch(config, rank, metrics, state, validation)


def report_epoch(config: TrainConfig, rank: int, metrics: dict[str, Any], state: State, validation: list[Tensor]) -> None:
    """Validate on rank 0 and hand the state to Ray Train; the other ranks wait in `report`."""
    if rank != 0:
        ray.train.report(metrics)
        return
    averaged = cast(Autoencoder, state.average.module)
    device = next(averaged.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    with torch.inference_mode():
        figures = [TASKS[config.task].validate(averaged, x.to(device), generator) for x in validation]
    metrics |= {f"valid_{k}": float(np.mean([f[k] for f in figures])) for k in figures[0]}
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), metrics)
        ray.train.report(metrics, Checkpoint.from_directory(folder))
    left = (config.epochs - state.epoch) * metrics["seconds"]
    shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k not in ("epoch", "seconds"))
    print(f"epoch {state.epoch}/{config.epochs}: {shown}, {left / 60:.0f} min left", flush=True)


def show_training(values: dict[str, Any], origin: str) -> None:
    """Train what the YAML says and print where the checkpoint is."""
    config = validate(TrainConfig, values, origin)
    with connected(config.address, log_to_driver=True):
        card = train(config)
    print(f"{config.output}/{card.name}: {card.metrics}")


def train(config: TrainConfig) -> checkpoints.Card:
    """Train, resuming what the same config left, and write the checkpoint folder `OUTPUT/NAME`. Ray must be connected.

    Raises: ConfigError, StorageError before anything starts.
    """
    for key, table in (("task", TASKS), ("architecture", ARCHITECTURES)):
        if getattr(config, key) not in table:
            raise ConfigError(f"{key} = {getattr(config, key)!r}; valid: {', '.join(table)}")
    if not config.input or not config.output:
        raise ConfigError("train needs an input (one or more folders of images) and an output")
    weights = initial_weights(config)
    stores, training, validation = list_images(config)
    output = Store(config.output, config.storage)
    try:
        output.write(f"{config.name}/.writable", b"")
        output.delete(f"{config.name}/.writable")
    except STORE_FAILURES as e:
        raise StorageError(f"output {config.output}: {reason(e)}") from None

    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = min(config.workers, gpus) if gpus else config.workers
    cpus = ray.cluster_resources().get("CPU", 1)
    # A quarter of each worker's share of the CPUs is left to the stage that reads and crops.
    share = cpus / workers
    data = ray.data.from_items(training).random_shuffle(seed=config.seed).repartition(max(8, 4 * workers)).materialize()
    crops = data.map_batches(
        Crops(stores, config.crop, config.crops_per_image, config.augment),
        batch_size=16,
        num_cpus=share * 0.25,
        zero_copy_batch=True,
    )
    usable = len(training) * config.crops_per_image
    steps = max(1, usable // (workers * config.batch_size))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(),
            "stores": stores,
            "validation": validation,
            "init": weights,
            "steps_per_epoch": steps,
            "threads": max(1, int(share)),
            "shuffle": min(2048, max(config.batch_size, usable // workers // 2)),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker={"CPU": share * 0.5}),
        run_config=ray.train.RunConfig(
            name=f"{config.name}-{config.digest()[:12]}",
            storage_path=f"{output.root}/runs",
            storage_filesystem=None if output.local else PyFileSystem(FSSpecHandler(output.fs)),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={"train": crops},
    )
    began = time.time()
    try:
        result = trainer.fit()
    except TrainingFailedError as e:
        raise RunFailed(f"training {config.name}: {reason(e)}. The same command goes on from its last state") from None
    if result.checkpoint is None:
        raise StorageError(f"output {config.output}: training left no state there")
    samples = finishing_images(stores, training, config.seed)
    return export(config, result.checkpoint, len(training), time.time() - began, samples)


def finishing_images(stores: list[Store], training: list[dict[str, Any]], seed: int) -> Iterator[Tensor]:
    """Training images (1,3,h,w) float in [0,1] for `Task.finish`; those that cannot be read are left out, as in training."""
    for reference in random.Random(seed).sample(training, min(len(training), FINISHING_IMAGES)):
        try:
            yield from center_crops(stores, [reference])
        except (ImageError, OSError):
            continue


def export(
    config: TrainConfig, state: Checkpoint, images: int, seconds: float, samples: Iterable[Tensor]
) -> checkpoints.Card:
    """The averaged weights of a training state, finished on training images (1,3,h,w), as a checkpoint folder."""
    model = ARCHITECTURES[config.architecture](**config.parameters)
    with state.as_directory() as folder:
        tensors = load_file(Path(folder) / "state.safetensors")
        progress = json.loads((Path(folder) / "state.json").read_text())
    averaged = "average.module."
    model.load_state_dict({k.removeprefix(averaged): v for k, v in tensors.items() if k.startswith(averaged)})
    TASKS[config.task].finish(model.eval().requires_grad_(False), samples)
    valid = {k[6:]: v for k, v in progress["metrics"].items() if k.startswith("valid_")}
    card = {
        "name": config.name,
        "task": config.task,
        "architecture": config.architecture,
        "parameters": config.parameters,
        "preprocessing": {"mode": "RGB", "range": [0, 1], "stride": model.stride},
        "training": {
            "config_sha256": config.digest(),
            "init_sha256": checkpoints.read_card(config.init).sha256 if config.init else None,
            "images": images,
            "epochs": progress["epoch"],
            "steps": progress["step"],
            "minutes": round(seconds / 60, 1),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        },
        "metrics": [{"set": "held-out training images", **{k: round(v, 3) for k, v in valid.items()}}],
    }
    return checkpoints.save(
        f"{config.output}/{config.name}", model, card, config.storage.options() if "s3://" in str(config.output) else None
    )
