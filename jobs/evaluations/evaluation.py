"""What an evaluation is: the config it follows, the figures it gives, and how it reaches the product."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from imagemill.jobs.console import number
from imagemill.jobs.outputs import read_newest_rows
from imagemill.models.metrics import SSIM_SIDE
from imagemill.models.tasks import TASKS
from imagemill.pipeline.config import RunConfig, Strict
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.resolve import ResolvedRun, check_model, check_output_task, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.folder import list_folder
from imagemill.pipeline.storage import StorageConfig, Store


class EvaluateConfig(Strict):
    """What `imagemill evaluate` does."""

    task: str = Field(description="Evaluate this task.")
    input: str | None = Field(None, description="Evaluate on the clean images of this folder or bucket.")
    set: str | None = Field(
        None, description="Call the images by this name in tables and cards. Default: the last folder of the input."
    )
    output: str | None = Field(
        None, description="Write evaluation.json and evaluation.png to this folder. Default: only print the table."
    )
    checkpoint: str | None = Field(
        None, description="Evaluate this checkpoint: a bundled name, a folder or a URL. Default: that of the task."
    )
    against: list[str] = Field(default_factory=list, description="Digits: also measure these other coders.")
    fit: str | None = Field(None, description="Digits: fit PCA on these training images.")
    at: list[float] = Field(
        default_factory=list,
        description="Measure at these noise levels (denoise), quantiser steps (compress) or weights alpha (stylize).",
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Set these parameters of the task in every measurement."
    )
    storage: StorageConfig = StorageConfig()

    @property
    def set_name(self) -> str:
        return self.set or str(self.input).rstrip("/").rpartition("/")[2]

    @property
    def weights(self) -> str:
        return self.checkpoint or TASKS[self.task].default_checkpoint


Line = dict[str, Any]
"""One line of a table: figures by column heading."""


@dataclass
class Measured:
    """What was found out about one checkpoint: it goes into the card of that."""

    checkpoint: str
    headline: str
    """One short figure with its unit."""
    lines: list[Line]


@dataclass
class Evaluation:
    images: int
    tables: dict[str, list[Line]]
    """By title."""
    measured: list[Measured]
    picture: bytes
    """PNG."""
    notes: list[str] = field(default_factory=list)
    details: dict[str, list[Line]] = field(default_factory=dict)
    """Tables that are kept, and too long to print."""


Evaluate = Callable[[EvaluateConfig], Evaluation]


def check_config(config: EvaluateConfig, at: str | None, drawn: tuple[str, ...] = ()) -> ResolvedRun:
    """What could be wrong before anything is measured is looked at.

    Args: at: the parameter that `at` holds values of; drawn: other parameters that the evaluation sets itself.
    Raises: ConfigError, CheckpointError, StorageError.
    """
    if config.at and at is None:
        raise ConfigError(f"at = {config.at}: {config.task} has no levels to choose")
    for key in ((at,) if at else ()) + drawn:
        if key in config.params:
            raise ConfigError(f"params.{key}: the evaluation sets it itself{', from the list at' if key == at else ''}")
    with work_folder() as folder:
        job = resolve(run_config(config, {}, config.input, folder))
        check_model(job)
        for value in config.at:
            check_model(resolve(run_config(config, {str(at): value}, config.input, folder)))
        check_output_task(job)
    return job


def run_config(config: EvaluateConfig, params: dict[str, Any], input: str | None, output: str) -> RunConfig:
    """The run that an evaluation measures."""
    return RunConfig(
        task=config.task,
        input=input,
        output=output,
        checkpoint=config.checkpoint,
        params=config.params | params,
        # Every image is measured.
        quality=sys.maxsize,
        storage=config.storage,
    )


@contextmanager
def work_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="imagemill-evaluate-") as folder:
        yield folder


@contextmanager
def through_product(config: EvaluateConfig, params: dict[str, Any], input: str) -> Iterator[tuple[Store, dict[str, Any]]]:
    """The OUTPUT of a run over `input`, for the time of a `with`, and its run.json.

    Raises: ConfigError when an image of it is rejected: a mean over the rest would be of another set.
    """
    with work_folder() as folder:
        record = run(run_config(config, params, input, folder))
        if record["rejected"]:
            raise ConfigError(
                f"{input}: rejected {record['rejected']} of {number(record['planned'], 'image')}: {record['reasons']}"
            )
        yield Store(folder), record


def restored(output: Store) -> dict[str, np.ndarray]:
    """The image (H,W,3) uint8 that each source became, by the source's relative path."""
    return {name: decode_image(output.read(row["output_uri"])).rgb for name, row in read_newest_rows(output, []).items()}


def read_images(url: str, storage: StorageConfig, smallest: int = SSIM_SIDE) -> dict[str, DecodedImage]:
    """Every image of a folder, by its relative path.

    Raises: ConfigError when there is none, or when one cannot be read or has a side shorter than `smallest` pixels.
    """
    store = Store(url, storage)
    pictures = {}
    for listed in list_folder(store):
        if isinstance(listed, str):
            continue
        here, all_of_them = store.uri(listed.rel_path), "an evaluation needs all images"
        if listed.problem:
            raise ConfigError(f"{here}: {listed.problem}; {all_of_them}")
        try:
            picture = decode_image(store.read(listed.rel_path))
        except ImageError as e:
            raise ConfigError(f"{here}: {e.error_class}: {e}; {all_of_them}") from None
        if min(picture.rgb.shape[:2]) < smallest:
            raise ConfigError(f"{here} is smaller than {smallest} pixels")
        pictures[listed.rel_path] = picture
    if not pictures:
        raise ConfigError(f"input {store.url} holds no images")
    return pictures


def seed_of(name: str) -> int:
    """What is drawn at random for an image hangs on its identity, as in the product."""
    return int(image_id(name)[:16], 16)


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def spread(names: list[str], count: int) -> list[str]:
    """Some names at even distances: those that are shown."""
    return [names[n] for n in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))]
