"""The config and the result of an evaluation, and helper functions that all evaluations use."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from imagemill.jobs.console import number
from imagemill.jobs.outputs import read_newest_rows
from imagemill.models.metrics import SSIM_SIDE
from imagemill.models.tasks import TASKS
from imagemill.models.type_checks import require_value
from imagemill.pipeline.config import RunConfig, Strict
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.resolve import ResolvedRun, check_model, check_output_task, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.folder import list_folder
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig


class EvaluateConfig(Strict):
    """The configuration of `imagemill evaluate`."""

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
    code: str | None = Field(
        None, description="Allow the checkpoint to run Python code from this folder, or code that is installed."
    )
    against: list[str] = Field(default_factory=list, description="Digits: also measure these other coders.")
    fit: str | None = Field(None, description="Digits: fit PCA on these training images.")
    at: list[float] = Field(
        default_factory=list,
        description="Measure at these noise levels (denoise), quantiser steps (compress) or weights alpha (stylize).",
    )
    noise: Literal["gaussian", "photo"] = Field(
        "gaussian",
        description="Denoise: add Gaussian noise, or noise like that of photos: stronger in light areas, smoothed, and "
        "compressed as JPEG. Its level is that at mid gray.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Set these parameters of the task in every measurement."
    )
    storage: StorageConfig = StorageConfig()

    @property
    def set_name(self) -> str:
        """The name of the images in tables and cards."""
        return self.set or str(self.input).rstrip("/").rpartition("/")[2]

    @property
    def weights(self) -> str:
        """The checkpoint to evaluate: a bundled name, folder or URL."""
        return require_value(self.checkpoint or TASKS[self.task].default_checkpoint, "checkpoint")


TableRow = dict[str, Any]
"""One row of a table: figures by column heading."""


@dataclass
class Measured:
    """The figures of one checkpoint, for its card.

    Attributes:
        checkpoint: bundled name, folder or URL.
        headline: one short figure with its unit.
        lines: the rows of all tables about the checkpoint.
    """

    checkpoint: str
    headline: str
    lines: list[TableRow]


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        images: number of images.
        tables: rows of the printed tables, by title.
        measured: the figures of each checkpoint.
        picture: a PNG file with examples or curves.
        notes: lines that explain the tables.
        details: rows of tables that are too long to print, by title.
    """

    images: int
    tables: dict[str, list[TableRow]]
    measured: list[Measured]
    picture: bytes
    notes: list[str] = field(default_factory=list)
    details: dict[str, list[TableRow]] = field(default_factory=dict)


Evaluate = Callable[[EvaluateConfig], Evaluation]


def check_config(config: EvaluateConfig, at: str | None, drawn: tuple[str, ...] = ()) -> ResolvedRun:
    """Check everything that can fail before the first measurement.

    Args:
        config: the evaluation.
        at: the parameter that takes the values of the key `at`, or None.
        drawn: other parameters that the evaluation sets itself.

    Raises:
        ConfigError: when the config is invalid.
        CheckpointError: when the checkpoint cannot be read or used.
        StorageError: when the input cannot be read.
    """
    if config.at and at is None:
        raise ConfigError(f"at = {config.at}: {config.task} has no levels to choose. Remove the key")
    for key in ((at,) if at else ()) + drawn:
        if key in config.params:
            raise ConfigError(f"params.{key}: the evaluation sets it itself{', from the list at' if key == at else ''}")
    with temporary_folder() as folder:
        job = resolve(build_run_config(config, {}, config.input, folder))
        check_model(job)
        for value in config.at:
            check_model(resolve(build_run_config(config, {str(at): value}, config.input, folder)))
        check_output_task(job)
    return job


def build_run_config(config: EvaluateConfig, params: dict[str, Any], input: str | None, output: str) -> RunConfig:
    """Return the config of a run that an evaluation measures."""
    return RunConfig(
        task=config.task,
        input=input,
        output=output,
        checkpoint=config.checkpoint,
        code=config.code,
        params=config.params | params,
        # Measure every image.
        quality=sys.maxsize,
        storage=config.storage,
    )


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Create a folder for the time of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="imagemill-evaluate-") as folder:
        yield folder


@contextmanager
def run_pipeline(config: EvaluateConfig, params: dict[str, Any], input: str) -> Iterator[tuple[Store, dict[str, Any]]]:
    """Run the pipeline over `input`; yield its OUTPUT, which exists during a `with` block, and its run.json.

    Args:
        config: the evaluation.
        params: parameters of the task in addition to those of the config.
        input: the images.

    Raises:
        ConfigError: when an image is rejected, because means over the other images would not be comparable.
    """
    with temporary_folder() as folder:
        record = run(build_run_config(config, params, input, folder))
        if record["rejected"]:
            raise ConfigError(
                f"{input}: rejected {record['rejected']} of {number(record['planned'], 'image')}: {record['reasons']}"
            )
        yield Store(folder), record


def read_outputs(output: Store) -> dict[str, np.ndarray]:
    """Read the output image (H,W,3) uint8 of each source, by the source's relative path."""
    return {name: decode_image(output.read(row["output_uri"])).rgb for name, row in read_newest_rows(output, []).items()}


def read_images(url: str, storage: StorageConfig, smallest: int = SSIM_SIDE) -> dict[str, DecodedImage]:
    """Read every image of a folder, by its relative path.

    Args:
        url: the folder.
        storage: where S3 is.
        smallest: smallest side of an image in pixels.

    Raises:
        ConfigError: when there is no image, or one is unreadable or too small.
    """
    store = Store(url, storage)
    pictures = {}
    for listed in list_folder(store):
        if isinstance(listed, str):
            continue
        here, all_of_them = store.uri(listed.rel_path), "an evaluation needs all images. Remove or replace the file"
        if listed.problem:
            raise ConfigError(f"{here}: {listed.problem}; {all_of_them}")
        try:
            picture = decode_image(store.read(listed.rel_path))
        except ImageError as e:
            raise ConfigError(f"{here}: {e.error_class}: {e}; {all_of_them}") from None
        if min(picture.rgb.shape[:2]) < smallest:
            raise ConfigError(f"{here}: smaller than {smallest} pixels. Remove or replace the file")
        pictures[listed.rel_path] = picture
    if not pictures:
        raise ConfigError(f"input {store.url}: no images. Check the location")
    return pictures


def image_seed(name: str) -> int:
    """Return the seed of an image's random numbers, which is derived from its name as in a run."""
    return int(image_id(name)[:16], 16)


def mean(values: list[float]) -> float:
    """Return the mean as a float."""
    return float(np.mean(values))


def pick_evenly(names: list[str], count: int) -> list[str]:
    """Return `count` names at even distances."""
    return [names[n] for n in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))]
