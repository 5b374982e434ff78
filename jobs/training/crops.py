"""Images to learn from: listed, each one decoded once to see what it is worth, split, and cut into crops by Ray Data.

No torch here: half a dozen of Ray's processes import this file.
"""

import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from imagemill.jobs.console import number
from imagemill.jobs.training.config import TrainConfig
from imagemill.pipeline.errors import ConfigError, StorageError, TooManyRejects
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.output.parts import columns_as_lists
from imagemill.pipeline.plan import split_blocks
from imagemill.pipeline.sources.image_reader import ImageReader, ReadError
from imagemill.pipeline.sources.input import Input, list_images, open_input
from imagemill.pipeline.sources.source import ListedImage
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason

log = logging.getLogger("imagemill.train")
KEPT = "images.parquet"
REFERENCE = pa.schema(
    [
        ("source", pa.int32()),
        ("rel_path", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("base", pa.string()),
        ("size", pa.int64()),
        ("source_etag", pa.string()),
    ]
)
"""Which input an image is of, and what `ImageReader` needs to know of it."""
EXAMINED = pa.schema([*REFERENCE, ("height", pa.int32()), ("width", pa.int32()), ("problem", pa.string())])
BLOCK_ROWS = 250
# Rank 0 holds them and measures all of them after each epoch; more would make the figure hardly surer.
MOST_VALIDATED = 500
VALIDATED_SIDE = 256


@dataclass(frozen=True)
class Images:
    """What was found (EXAMINED), and what it is used for: "training", "validation" or "left out"."""

    SCHEMA: ClassVar[pa.Schema] = EXAMINED.append(pa.field("use", pa.string()))
    table: pa.Table

    def of(self, use: str) -> pa.Table:
        return self.table.filter(pc.field("use") == use)

    def left_out(self) -> str:
        """One line for a person: how many, and the first ones by name. Empty when all are used."""
        gone = self.of("left out")
        names = [
            f"{n}: {problem}"
            for n, problem in zip(*columns_as_lists(gone.slice(0, 3), ["rel_path", "problem"]), strict=True)
        ]
        more = f" and {len(gone) - 3:,} more" if len(gone) > 3 else ""
        return f"{len(gone):,} of {number(len(self.table), 'image')} left out: {'; '.join(names)}{more}" if names else ""


def inputs_of(config: TrainConfig) -> list[Input]:
    """Raises: ConfigError, StorageError for what cannot be read."""
    return [open_input(url, config.storage, config.source) for url in config.input]


def images_of(config: TrainConfig, inputs: list[Input], run: Store) -> Images:
    """The images of a run: found and examined at its first start, and kept with it. Ray must be connected.

    Every image is decoded once before the training, which costs what reading them in one epoch costs. So the number of steps
    is known, broken images end a run before it began, and a resumed run has the images that it had.

    Raises: ConfigError when they are too few or too small, TooManyRejects when too many cannot be read, StorageError.
    """
    if run.exists(KEPT):
        return kept_images(run)
    images = split(examined(inputs, listed(inputs)), config)
    out = pa.BufferOutputStream()
    pq.write_table(images.table, out, compression="zstd")
    run.write(KEPT, out.getvalue().to_pybytes())
    return images


def kept_images(run: Store) -> Images:
    """The images that a run has had since its first start."""
    return Images(pq.read_table(io.BytesIO(run.read(KEPT))))


def listed(inputs: list[Input]) -> pa.Table:
    """Every image of the inputs (EXAMINED, not yet looked at). Raises: StorageError, ConfigError."""
    rows: list[dict[str, Any]] = []
    for place, source in enumerate(inputs):
        for image in (found for found in list_images(source) if isinstance(found, ListedImage)):
            row = {"source": place, "rel_path": image.rel_path, "path": image.path, "offset": image.offset}
            rows.append({**row, "base": image.base, "size": image.size, "source_etag": image.etag, "problem": image.problem})
    if not rows:
        raise ConfigError(f"input: no images in {', '.join(source.url for source in inputs)}")
    return pa.Table.from_pylist(rows, EXAMINED)


def examined(inputs: list[Input], table: pa.Table) -> pa.Table:
    """The table with sizes in pixels or problems, sorted by input and name."""
    todo = table.filter(pc.field("problem").is_null())
    done = [table.filter(~pc.field("problem").is_null())]
    count = 0
    log.info("looking at %s", number(len(todo), "image"))
    if len(todo):
        looked = ray.data.from_blocks(split_blocks(todo.select(REFERENCE.names), BLOCK_ROWS)).map_batches(
            look, fn_args=[inputs], batch_format="pyarrow", batch_size=None
        )
        for batch in looked.iter_batches(batch_format="pyarrow", batch_size=None):
            done.append(batch.cast(EXAMINED))
            count += len(batch)
            if count % (40 * BLOCK_ROWS) < len(batch):
                log.info("looked at %s of %s", f"{count:,}", f"{len(todo):,}")
    return pa.concat_tables(done).sort_by([("source", "ascending"), ("rel_path", "ascending")])


def look(batch: pa.Table, inputs: list[Input]) -> pa.Table:
    """References (REFERENCE) to EXAMINED: each image is read and decoded."""
    rows, readings = [], Readings(inputs)
    for reference in batch.to_pylist():
        try:
            height, width = decode_image(readings.image(reference)).rgb.shape[:2]
            rows.append({**reference, "height": height, "width": width})
        except (ImageError, ReadError) as e:
            rows.append({**reference, "problem": f"{e.error_class}: {e}"})
    return pa.Table.from_pylist(rows, EXAMINED)


class Readings:
    """The bytes of images of several inputs. A shard is kept open; it travels closed."""

    def __init__(self, inputs: list[Input]) -> None:
        self.inputs = inputs
        self._open: dict[int, ImageReader] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Readings, (self.inputs,)

    def image(self, reference: dict[str, Any]) -> bytes:
        """As `ImageReader.image`."""
        place = reference["source"]
        if place not in self._open:
            self._open[place] = ImageReader(self.inputs[place], 1)
        return self._open[place].image(reference)


def split(table: pa.Table, config: TrainConfig) -> Images:
    """What each image (EXAMINED) is used for.

    Whether an image validates hangs on its name alone, so that more images move none; where the share gives none, the one
    that is nearest to it does. Raises: ConfigError, TooManyRejects.
    """
    broken = ~np.asarray(table["problem"].is_null())
    if broken.sum() > config.max_broken_fraction * len(table):
        images = Images(table.append_column("use", pa.array(np.where(broken, "left out", "training"), pa.string())))
        raise TooManyRejects(f"input: {images.left_out()}: more than max_broken_fraction = {config.max_broken_fraction:g}")
    side = np.minimum(*(np.asarray(table[name].fill_null(0)) for name in ("height", "width")))
    small = ~broken & (side < config.crop)
    usable = ~broken & ~small
    if usable.sum() < 2:
        raise ConfigError(
            f"input: {usable.sum()} of {number(len(table), 'image')} can be used ({broken.sum()} cannot be read, "
            f"{small.sum()} are smaller than crop = {config.crop}); one to train on and one to validate on are the least"
        )
    draws = np.array([draw(name) for name in table["rel_path"].to_pylist()])
    draws[~usable] = 2
    validates = draws < config.validation_share
    validates[draws.argmin()] = True
    if (validates & usable).sum() == usable.sum():
        validates[np.where(usable, draws, -1).argmax()] = False
    use = np.where(usable, np.where(validates, "validation", "training"), "left out")
    sizes = zip(*columns_as_lists(table, ["height", "width", "problem"]), small, strict=True)
    problems = [f"{w}×{h} pixels, smaller than crop = {config.crop}" if s else p for h, w, p, s in sizes]
    where = table.schema.get_field_index("problem")
    table = table.set_column(where, "problem", pa.array(problems, pa.string()))
    return Images(table.append_column("use", pa.array(use, pa.string())))


def draw(name: str) -> float:
    """A number in [0,1) that a name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


def crops_of(training: pa.Table, inputs: list[Input], config: TrainConfig, num_cpus: float) -> ray.data.Dataset:
    """Training images as a dataset of crops `image` (crop,crop,3) uint8, new ones each time that it is read."""
    rows = max(1, min(BLOCK_ROWS, len(training) // max(8, 4 * config.workers)))
    order = shuffled(training, rows, np.random.default_rng(config.seed))
    return ray.data.from_blocks(split_blocks(training.select(REFERENCE.names).take(order), rows)).map_batches(
        Crops(inputs, config.crop, config.crops_per_image, config.augment),
        batch_size=16,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        zero_copy_batch=True,
    )


def shuffled(training: pa.Table, rows: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of images; at most `rows` neighbours of a shard stay together, as shards are read forward."""
    place, groups = 0, []
    order = training.append_column("row", pa.array(np.arange(len(training)))).sort_by(
        [("source", "ascending"), ("path", "ascending"), ("offset", "ascending")]
    )
    keys = list(zip(*columns_as_lists(order, ["source", "path", "offset"]), strict=True))
    for stop in range(1, len(keys) + 1):
        alone = keys[place][2] is None
        if stop == len(keys) or alone or keys[stop][:2] != keys[place][:2] or stop - place == rows:
            groups.append(order["row"].slice(place, stop - place).to_numpy())
            place = stop
    return np.concatenate([groups[place] for place in rng.permutation(len(groups))])


class Crops:
    """References to random crops (N,crop,crop,3) uint8; an image that can no longer be read gives none."""

    def __init__(self, inputs: list[Input], crop: int, per_image: int, augment: str) -> None:
        self.readings, self.crop, self.per_image, self.augment = Readings(inputs), crop, per_image, augment

    def __call__(self, batch: pa.Table) -> dict[str, np.ndarray]:
        rng = np.random.default_rng()
        crops = [
            random_crop(rgb, self.crop, self.augment, rng)
            for rgb in readable(self.readings, batch.to_pylist())
            if min(rgb.shape[:2]) >= self.crop
            for _ in range(self.per_image)
        ]
        empty = np.zeros((0, self.crop, self.crop, 3), np.uint8)
        return {"image": np.stack(crops) if crops else empty}


def readable(readings: Readings, references: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """The images (H,W,3) uint8 of references, without those that cannot be read."""
    for reference in references:
        try:
            yield decode_image(readings.image(reference)).rgb
        except (ImageError, ReadError) as e:
            log.warning("%s left out: %s", reference["rel_path"], reason(e))


def random_crop(rgb: np.ndarray, crop: int, augment: str, rng: np.random.Generator) -> np.ndarray:
    """A crop at a random place, flipped and turned at random as `augment` allows."""
    y, x = rng.integers(rgb.shape[0] - crop + 1), rng.integers(rgb.shape[1] - crop + 1)
    patch = rgb[y : y + crop, x : x + crop]
    if augment == "turn":
        patch = np.rot90(patch, int(rng.integers(4)))
    return np.ascontiguousarray(patch[:, ::-1] if augment != "none" and rng.integers(2) else patch)


def middle_crops(inputs: list[Input], images: pa.Table, stride: int, most: int = MOST_VALIDATED) -> list[np.ndarray]:
    """The middles of at most `most` images (REFERENCE), (h,w,3) uint8, sides cut to multiples of `stride`, at most 256.

    Raises: StorageError when none can be read.
    """
    chosen = sorted(images.to_pylist(), key=lambda reference: draw(reference["rel_path"]))[:most]
    crops = []
    for rgb in readable(Readings(inputs), chosen):
        h, w = (min(n, max(VALIDATED_SIDE, stride)) // stride * stride for n in rgb.shape[:2])
        y, x = (rgb.shape[0] - h) // 2, (rgb.shape[1] - w) // 2
        if h and w:
            crops.append(rgb[y : y + h, x : x + w].copy())
    if not crops:
        names = ", ".join(reference["rel_path"] for reference in chosen[:3])
        raise StorageError(f"none of {len(chosen):,} images can be read any more; the first: {names}")
    return crops
