"""The work on an image, which is the same in every peer, and the tuned code that peers share.

Workloads: "latents" and "shards" produce symbols (C,h,w) int8 in Parquet, "images" and "sizes" produce denoised JPEGs with
a row each. A peer "as written" uses `network` and otherwise follows its documentation. A tuned peer uses `Tuned` and `Rows`,
so tuned peers differ only in how images get to the model and back.
"""

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from imagemill.models import checkpoint
from imagemill.models.latents import encode_images
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision, fastest_dtype
from imagemill.models.tasks.denoise import DenoiseParams
from imagemill.models.tasks.task import Sample

STEP, SIGMA = 26.0, 15.0
"""Quantiser step, and noise level (given, not estimated), both in 8-bit levels."""
QUALITY, SUBSAMPLING = 95, 0
"""Chroma subsampling of output JPEGs: 4:4:4."""
BATCH = 8
ROWS, TUNED_ROWS = 250, 32
"""Rows of a Parquet row group. With fewer latents, the writer holds less memory and is faster."""
ZSTD = 3
PROCESSES = len(os.sched_getaffinity(0))


def arguments() -> tuple[str, str, Path]:
    """Return WORKLOAD, INPUT and OUTPUT of a peer's command line."""
    workload, source, output = sys.argv[1:4]
    if not gives_latents(workload):
        (Path(output) / "images").mkdir()
    return workload, source, Path(output)


def gives_latents(workload: str) -> bool:
    return workload in ("latents", "shards")


def network(workload: str) -> nn.Module:
    """Return the bundled network of a workload, ready to run."""
    name = "compress-small" if gives_latents(workload) else "denoise-small"
    card = checkpoint.read_card(name)
    return checkpoint.build(card, checkpoint.read_weights(name, card)).eval()


def stamp(output: Path, count: int) -> None:
    """Record that `count` images are finished, for the rate inside the run."""
    with open(f"{output}/{os.getpid()}.times", "a") as f:
        f.write(f"{time.time()} {count}\n")


def saved(folder: Path, path: str, image: Image.Image) -> str:
    """Return the output path of an image, from the name of its source."""
    target = f"{folder}/images/{Path(path).name}"
    image.save(target, quality=QUALITY, subsampling=SUBSAMPLING)
    return target


class Tuned:
    """Decode, model and encode on one thread: channels last, inference mode, bf16 where the hardware has it (AMX)."""

    def __init__(self, workload: str) -> None:
        torch.set_num_threads(1)
        self.model = network(workload).to(memory_format=torch.channels_last)
        self.latents = gives_latents(workload)
        self.precision = Precision("cpu", fastest_dtype("cpu"))
        self.params = DenoiseParams(sigma=SIGMA)

    def decode(self, data: bytes) -> np.ndarray:
        """Decode an image to (H,W,3) uint8."""
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    def run(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Turn images of one size into symbols (C,h,w) int8, or into images (H,W,3) uint8; large ones in tiles."""
        if self.latents:
            return list(encode_images(self.model, images, STEP, "cpu"))
        outputs = TASK_OBJECTIVES["denoise"].predict(
            self.model, [Sample(image) for image in images], self.params, self.precision
        )
        return [output.image for output in outputs]

    def encode(self, image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
        return out.getvalue()


def batches(
    named: Iterator[tuple[str, bytes]], tuned: Tuned, most: int = BATCH
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Yield batches of names and decoded images; a batch ends when the size changes."""
    names: list[str] = []
    images: list[np.ndarray] = []
    for name, data in named:
        image = tuned.decode(data)
        if images and (len(images) == BATCH or image.shape != images[0].shape):
            yield names, images
            names, images = [], []
        names.append(name)
        images.append(image)
    if images:
        yield names, images


class Rows:
    """Writes the Parquet file of a process, one row group per 32 images."""

    def __init__(self, path: Path, latents: bool) -> None:
        self.latents, self.names, self.values = latents, [], []
        value = ("latent", pa.list_(pa.uint8())) if latents else ("output", pa.string())
        how = {"use_dictionary": False, "column_encoding": {"latent.list.element": "BYTE_STREAM_SPLIT"}} if latents else {}
        schema = pa.schema([("path", pa.string()), value])
        self.file = pq.ParquetWriter(path, schema, compression="zstd", compression_level=ZSTD, write_statistics=False, **how)

    def add(self, names: Sequence[str], values: Sequence[np.ndarray | str]) -> None:
        """Add rows.

        Args:
            values: symbols, or paths of images.
        """
        self.names += names
        self.values += values
        if len(self.names) >= TUNED_ROWS:
            self._write()

    def _write(self) -> None:
        values = lists_of(self.values) if self.latents else pa.array(self.values)
        self.file.write_table(pa.table([pa.array(self.names), values], schema=self.file.schema))
        self.names, self.values = [], []

    def close(self) -> None:
        if self.names:
            self._write()
        self.file.close()


def lists_of(symbols: Sequence[np.ndarray]) -> pa.ListArray:
    """Return the symbols (C,h,w) int8 of each image as an Arrow column of symbols + 128, like Imagemill.

    Parquet widens bytes to 32 bits: split, three of the four are nothing, where no sign is carried into them.
    """
    ends = np.cumsum([0, *(value.size for value in symbols)], dtype=np.int32)
    stored = np.concatenate([value.ravel() for value in symbols]).view(np.uint8) ^ np.uint8(128)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(stored))
