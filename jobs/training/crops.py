"""Crops of training images (random positions, by Ray Data) and of validation images (the centre).

No torch here, because several Ray processes import this file. Flips and turns are applied in the workers: augmentation.py.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.images import BLOCK_ROWS, REFERENCE, InputReaders, decode_readable, hash_fraction
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.parts import columns_as_lists
from imagemill.pipeline.plan import split_blocks
from imagemill.pipeline.sources.input import Input

MAX_VALIDATION_IMAGES = 500
"""Rank 0 keeps these in memory and measures all of them after each epoch."""
VALIDATION_SIDE = 256


def build_crop_dataset(training: pa.Table, inputs: list[Input], config: TrainConfig, num_cpus: float) -> ray.data.Dataset:
    """Return a dataset of crops `image` (crop,crop,3) uint8, at new random positions in each epoch.

    Args:
        training: rows of the training images (REFERENCE).
        inputs: the inputs that the rows refer to.
        config: the training.
        num_cpus: CPUs of each reading task.
    """
    rows = max(1, min(BLOCK_ROWS, len(training) // max(8, 4 * config.workers)))
    order = shuffle_images(training, rows, np.random.default_rng(config.seed))
    return ray.data.from_blocks(split_blocks(training.select(REFERENCE.names).take(order), rows)).map_batches(
        CropReader(inputs, config.crop, config.crops_per_image),
        batch_size=16,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        zero_copy_batch=True,
    )


def shuffle_images(training: pa.Table, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of row indices.

    Up to `rows` neighbours in a shard stay together, because shards are fastest to read sequentially.
    """
    start, groups = 0, []
    order = training.append_column("row", pa.array(np.arange(len(training)))).sort_by(
        [("source", "ascending"), ("path", "ascending"), ("offset", "ascending")]
    )
    keys = list(zip(*columns_as_lists(order, ["source", "path", "offset"]), strict=True))
    for stop in range(1, len(keys) + 1):
        is_file = keys[start][2] is None
        if stop == len(keys) or is_file or keys[stop][:2] != keys[start][:2] or stop - start == rows:
            groups.append(order["row"].slice(start, stop - start).to_numpy())
            start = stop
    return np.concatenate([groups[index] for index in rng.permutation(len(groups))])


class CropReader:
    """Maps REFERENCE rows to random crops (N,crop,crop,3) uint8; an image that can no longer be read gives no crop.

    Args:
        inputs: the inputs that the rows refer to.
        crop: side of a crop in pixels.
        per_image: crops of each image.
    """

    def __init__(self, inputs: list[Input], crop: int, per_image: int) -> None:
        self.readers, self.crop, self.per_image = InputReaders(inputs), crop, per_image

    def __call__(self, batch: pa.Table) -> dict[str, np.ndarray]:
        """Return the crops `image` of a batch of rows."""
        rng = np.random.default_rng()
        crops = [
            crop_randomly(rgb, self.crop, rng)
            for rgb in decode_readable(self.readers, batch.to_pylist())
            if min(rgb.shape[:2]) >= self.crop
            for _ in range(self.per_image)
        ]
        empty = np.zeros((0, self.crop, self.crop, 3), np.uint8)
        return {"image": np.stack(crops) if crops else empty}


def crop_randomly(rgb: np.ndarray, crop: int, rng: np.random.Generator) -> np.ndarray:
    """Return a crop (crop,crop,3) at a random position of an image (H,W,3)."""
    y, x = rng.integers(rgb.shape[0] - crop + 1), rng.integers(rgb.shape[1] - crop + 1)
    return np.ascontiguousarray(rgb[y : y + crop, x : x + crop])


def read_centre_crops(
    inputs: list[Input], images: pa.Table, stride: int, max_images: int = MAX_VALIDATION_IMAGES
) -> list[np.ndarray]:
    """Read the centres (h,w,3) uint8 of images, with sides of at most 256 pixels that are multiples of `stride`.

    Args:
        inputs: the inputs that the rows refer to.
        images: rows of the images (REFERENCE).
        stride: output stride of the network.
        max_images: number of images, chosen by the hash of their names.

    Raises:
        StorageError: when none of the images can be read.
    """

    def key(reference: dict[str, Any]) -> float:
        return hash_fraction(reference["rel_path"])

    chosen = sorted(images.to_pylist(), key=key)[:max_images]
    crops = []
    for rgb in decode_readable(InputReaders(inputs), chosen):
        h, w = (min(n, max(VALIDATION_SIDE, stride)) // stride * stride for n in rgb.shape[:2])
        y, x = (rgb.shape[0] - h) // 2, (rgb.shape[1] - w) // 2
        if h and w:
            crops.append(rgb[y : y + h, x : x + w].copy())
    if not crops:
        names = ", ".join(reference["rel_path"] for reference in chosen[:3])
        raise StorageError(f"input: none of {len(chosen):,} images can be read any more; the first are {names}")
    return crops
