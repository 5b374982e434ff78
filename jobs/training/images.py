"""The images of a training: listed, decoded once to find sizes and broken files, and split into training and validation.

No torch here, because several Ray processes import this file.
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
from imagemill.pipeline.errors import ConfigError, TooManyRejects
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
IMAGES_FILE = "images.parquet"
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
"""The index of an image's input, and the columns that `ImageReader` needs."""
EXAMINED = pa.schema([*REFERENCE, ("height", pa.int32()), ("width", pa.int32()), ("problem", pa.string())])
BLOCK_ROWS = 250
LOGGED_ROWS = 40 * BLOCK_ROWS
SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class Images:
    """The images of a training.

    Attributes:
        table: the columns of EXAMINED and `use`: "training", "validation" or "left out".
    """

    SCHEMA: ClassVar[pa.Schema] = EXAMINED.append(pa.field("use", pa.string()))
    table: pa.Table

    def of(self, use: str) -> pa.Table:
        """Return the rows with a given use."""
        return self.table.filter(pc.field("use") == use)

    def left_out(self) -> str:
        """Describe in one line how many images are left out, with the first ones by name; empty if all are used."""
        unused = self.of("left out")
        first = columns_as_lists(unused.slice(0, SHOWN_PROBLEMS), ["rel_path", "problem"])
        names = [f"{name}: {problem}" for name, problem in zip(*first, strict=True)]
        more = f" and {len(unused) - SHOWN_PROBLEMS:,} more" if len(unused) > SHOWN_PROBLEMS else ""
        return f"{len(unused):,} of {number(len(self.table), 'image')} left out: {'; '.join(names)}{more}" if names else ""


def open_inputs(config: TrainConfig) -> list[Input]:
    """Open the inputs of a config.

    Raises:
        ConfigError: when an input is invalid.
        StorageError: when an input cannot be read.
    """
    return [open_input(url, config.storage, config.source) for url in config.input]


def prepare_images(config: TrainConfig, inputs: list[Input], run: Store) -> Images:
    """Find and examine the images of a training at its first start; read the result later. Ray must be connected.

    Decoding every image once costs about as much as reading one epoch. In return, the number of steps is known, broken
    images are reported before the training starts, and a resumed training has the same images.

    Args:
        config: the training.
        inputs: its opened inputs.
        run: where the result is stored.

    Raises:
        ConfigError: when there are too few images or all are too small.
        TooManyRejects: when too many images cannot be read.
        StorageError: when an input cannot be listed.
    """
    if run.exists(IMAGES_FILE):
        return read_images(run)
    images = split_images(examine_images(inputs, list_training_images(inputs)), config)
    out = pa.BufferOutputStream()
    pq.write_table(images.table, out, compression="zstd")
    run.write(IMAGES_FILE, out.getvalue().to_pybytes())
    return images


def read_images(run: Store) -> Images:
    """Read the images that `prepare_images` stored."""
    return Images(pq.read_table(io.BytesIO(run.read(IMAGES_FILE))))


def list_training_images(inputs: list[Input]) -> pa.Table:
    """List all images of the inputs, with the schema EXAMINED and without sizes.

    Raises:
        ConfigError: when there is no image.
        StorageError: when an input cannot be listed.
    """
    rows: list[dict[str, Any]] = []
    for index, source in enumerate(inputs):
        for image in (entry for entry in list_images(source) if isinstance(entry, ListedImage)):
            row = {"source": index, "rel_path": image.rel_path, "path": image.path, "offset": image.offset}
            rows.append({**row, "base": image.base, "size": image.size, "source_etag": image.etag, "problem": image.problem})
    if not rows:
        filters = ", and source.include and source.exclude" if inputs[0].config.selection else ""
        raise ConfigError(f"input: no images in {', '.join(source.url for source in inputs)}. Check the locations{filters}")
    return pa.Table.from_pylist(rows, EXAMINED)


def examine_images(inputs: list[Input], table: pa.Table) -> pa.Table:
    """Add the size or the problem of each image, and sort by input and name."""
    todo = table.filter(pc.field("problem").is_null())
    tables = [table.filter(~pc.field("problem").is_null())]
    count = 0
    log.info("examining %s", number(len(todo), "image"))
    if len(todo):
        examined = ray.data.from_blocks(split_blocks(todo.select(REFERENCE.names), BLOCK_ROWS)).map_batches(
            examine_batch, fn_args=[inputs], batch_format="pyarrow", batch_size=None
        )
        for batch in examined.iter_batches(batch_format="pyarrow", batch_size=None):
            tables.append(batch.cast(EXAMINED))
            count += len(batch)
            if count % LOGGED_ROWS < len(batch):
                log.info("examined %s of %s", f"{count:,}", number(len(todo), "image"))
    return pa.concat_tables(tables).sort_by([("source", "ascending"), ("rel_path", "ascending")])


def examine_batch(batch: pa.Table, inputs: list[Input]) -> pa.Table:
    """Read and decode each image of REFERENCE rows; return EXAMINED rows."""
    rows, readers = [], InputReaders(inputs)
    for reference in batch.to_pylist():
        try:
            height, width = decode_image(readers.read(reference)).rgb.shape[:2]
            rows.append({**reference, "height": height, "width": width})
        except (ImageError, ReadError) as e:
            rows.append({**reference, "problem": f"{e.error_class}: {e}"})
    return pa.Table.from_pylist(rows, EXAMINED)


class InputReaders:
    """Reads encoded images of several inputs. Shards stay open; a pickled object opens them again."""

    def __init__(self, inputs: list[Input]) -> None:
        self.inputs = inputs
        self._readers: dict[int, ImageReader] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return InputReaders, (self.inputs,)

    def read(self, reference: dict[str, Any]) -> bytes:
        """Return the bytes of the image of a REFERENCE row.

        Raises:
            ReadError: when the image cannot be read.
        """
        index = reference["source"]
        if index not in self._readers:
            self._readers[index] = ImageReader(self.inputs[index], 1)
        return self._readers[index].image(reference)


def decode_readable(readers: InputReaders, references: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Yield the images (H,W,3) uint8 of references; log and skip those that cannot be read."""
    for reference in references:
        try:
            yield decode_image(readers.read(reference)).rgb
        except (ImageError, ReadError) as e:
            log.warning("%s left out: %s", reference["rel_path"], reason(e))


def split_images(table: pa.Table, config: TrainConfig) -> Images:
    """Assign a use to each image of an EXAMINED table.

    Whether an image is used for validation depends only on its name, so that new images do not move existing ones. If the
    share gives none, the image closest to it is used.

    Raises:
        ConfigError: when fewer than two images can be used.
        TooManyRejects: when too many images cannot be read.
    """
    is_broken = ~np.asarray(table["problem"].is_null())
    if is_broken.sum() > config.max_broken_fraction * len(table):
        images = Images(table.append_column("use", pa.array(np.where(is_broken, "left out", "training"), pa.string())))
        raise TooManyRejects(
            f"input: more than max_broken_fraction = {config.max_broken_fraction:g} cannot be read: {images.left_out()}"
        )
    side = np.minimum(*(np.asarray(table[name].fill_null(0)) for name in ("height", "width")))
    is_small = ~is_broken & (side < config.crop)
    is_usable = ~is_broken & ~is_small
    if is_usable.sum() < 2:
        raise ConfigError(
            f"input: {is_usable.sum()} of {number(len(table), 'image')} can be used ({is_broken.sum()} cannot be read, "
            f"{is_small.sum()} are smaller than crop = {config.crop}). A training needs at least 2"
        )
    fractions = np.array([hash_fraction(name) for name in table["rel_path"].to_pylist()])
    fractions[~is_usable] = 2
    is_validation = fractions < config.validation_share
    is_validation[fractions.argmin()] = True
    if (is_validation & is_usable).sum() == is_usable.sum():
        is_validation[np.where(is_usable, fractions, -1).argmax()] = False
    use = np.where(is_usable, np.where(is_validation, "validation", "training"), "left out")
    sizes = zip(*columns_as_lists(table, ["height", "width", "problem"]), is_small, strict=True)
    problems = [f"{w}×{h} pixels, smaller than crop = {config.crop}" if small else p for h, w, p, small in sizes]
    column = table.schema.get_field_index("problem")
    table = table.set_column(column, "problem", pa.array(problems, pa.string()))
    return Images(table.append_column("use", pa.array(use, pa.string())))


def hash_fraction(name: str) -> float:
    """Return a number in [0,1) that is derived from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
