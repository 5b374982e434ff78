"""Parquet shards: a column of encoded images, or of lists of images, and optionally a column that names them."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.sources.folder import has_image_signature
from imagemill.pipeline.sources.parquet_columns import (
    can_name_images,
    check_carry,
    check_columns_exist,
    check_key,
    describe_columns,
    holds_binary,
    holds_images,
    is_list,
    value_type,
)
from imagemill.pipeline.sources.source import ListedEntry, ListedImage, ShardFormat, SourceConfig, to_extra
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import is_damage

SUFFIXES = (".parquet",)
IMAGE_NAMES = ("image", "images", "bytes", "img", "jpg", "jpeg", "png", "webp", "content", "data")
"""Usual names of the column of images, the likeliest first."""
KEY_NAMES = ("key", "__key__", "id", "image_id", "file_name", "filename", "name", "path", "url", "uri")
"""Usual names of the column that names images, the likeliest first."""
BATCH_ROWS = 16
"""Rows that are decoded at a time, so that a row group of any size fits into memory."""
SAMPLED_ROWS = 256
"""Rows whose bytes are examined to find the column of images, if no column has a usual name."""
MAX_ROW_IMAGES = 1 << 24
"""In a column of lists, the offset of an image is row * MAX_ROW_IMAGES + number of the image in its row."""


class RowFile(Protocol):
    """A file of rows: `pq.ParquetFile`, or `arrow.ArrowFile`."""

    schema_arrow: pa.Schema

    def iter_batches(self, batch_size: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, at most `batch_size` at a time."""


class NoImages(Exception):
    """Raised for a file without a column of encoded images."""


class UnreadableColumn(Exception):
    """Raised if the column of images is ambiguous or has an unsupported type. The message says what to do."""


def find_image_column(file: RowFile, path: str, config: SourceConfig) -> str:
    """Return the column of encoded images.

    The choice is, in this order: the configured column; a column with a usual name; the only binary column; the only column
    whose first rows begin like images.

    Raises:
        ConfigError: when the configured column does not exist or cannot hold images.
        NoImages: when no column holds images.
        UnreadableColumn: when several columns may hold images, or the images are nested too deeply.
    """
    schema = file.schema_arrow
    candidates = [field.name for field in schema if holds_images(field.type)]
    if config.image:
        check_columns_exist(schema.names, path, "image", [config.image])
        if config.image in candidates:
            return config.image
        column, valid = describe_columns(schema, [config.image]), describe_columns(schema, candidates) or "none"
        raise ConfigError(f"source.image = {config.image!r}: {path}: {column} is not a column of images; valid: {valid}")
    if repeated := sorted({name for name in candidates if schema.names.count(name) > 1}):
        raise UnreadableColumn(f"several columns are called {', '.join(repeated)}. Rename them")
    usual = [name for name in IMAGE_NAMES if name in candidates]
    # Binary values of a fixed size are digests rather than images.
    varied = [name for name in candidates if not pa.types.is_fixed_size_binary(value_type(schema.field(name).type))]
    if usual or len(varied) == 1:
        return (usual or varied)[0]
    sampled = sample_image_columns(file, [field.name for field in schema if holds_binary(field.type)])
    nested = [name for name in IMAGE_NAMES if name in schema.names and holds_binary(schema.field(name).type)]
    if too_deep := [name for name in dict.fromkeys([*nested, *sampled]) if name not in candidates]:
        raise UnreadableColumn(
            f"{describe_columns(schema, too_deep)}: images at this depth are not read. A column of images is binary, a "
            "struct with bytes, or a list of one of them"
        )
    if len(sampled) > 1:
        raise UnreadableColumn(f"{describe_columns(schema, sampled)}: all of them hold images. Name one in source.image")
    if sampled:
        return sampled[0]
    raise NoImages


def sample_image_columns(file: RowFile, names: list[str]) -> list[str]:
    """Return the columns that contain, at any depth, bytes that begin like an image in the first rows."""
    image_columns: set[str] = set()
    rows = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=names) if names else ():
        image_columns |= {name for name in names if any(map(has_image_signature, iterate_bytes(batch[name].to_pylist())))}
        rows += len(batch)
        if rows >= SAMPLED_ROWS:
            break
    return [name for name in names if name in image_columns]


def iterate_bytes(value: Any) -> Iterator[bytes]:
    """Yield all bytes in a value of nested lists, tuples and structs."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from iterate_bytes(inner)


def row_images(value: Any) -> list[tuple[bytes, str | None]]:
    """Return the encoded images of a row's value, each with the `path` of its struct. A null image has no bytes."""
    if isinstance(value, list):
        return [image for inner in value for image in row_images(inner)]
    if isinstance(value, dict):
        return [(value["bytes"] or b"", value.get("path"))]
    return [(value or b"", None)]


def find_key_column(schema: pa.Schema, path: str, config: SourceConfig) -> str | None:
    """Return the column that names images: the configured one, or one with a usual name; None if there is none.

    Raises:
        ConfigError: when the configured column does not exist or cannot name images.
    """
    if config.key:
        check_key(schema, path, config.key)
        return config.key
    unique = (name for name in KEY_NAMES if schema.names.count(name) == 1)
    return next((name for name in unique if can_name_images(schema.field(name).type)), None)


def index_parquet(store: Store, path: str, config: SourceConfig) -> Iterator[ListedEntry]:
    """List the images of a Parquet shard, like `ShardFormat.index`."""
    yield from index_rows(pq.ParquetFile, "parquet", store, path, config)


def index_rows(
    open_rows: Callable[[BinaryIO], RowFile], kind: str, store: Store, path: str, config: SourceConfig
) -> Iterator[ListedEntry]:
    """List the images of a shard that is a file of rows.

    The etag of an image is a digest of its bytes. A file without images counts as one other file.

    Args:
        open_rows: opens the content of the shard.
        kind: what a file without images is counted as.
        store: the location of the input.
        path: the shard.
        config: how to read the shard.

    Raises:
        ConfigError: when a configured column does not exist or has an unsuitable type.
    """
    column = "its columns"
    try:
        with store.open(path) as file:
            row_file = open_rows(file)
            schema, carry = row_file.schema_arrow, config.carry or []
            image_column, key = find_image_column(row_file, path, config), find_key_column(schema, path, config)
            check_carry(schema, path, carry)
            column, has_lists = describe_columns(schema, [image_column]), is_list(schema.field(image_column).type)
            selected = list(dict.fromkeys([image_column, *([key] if key else []), *carry]))
            row = 0
            for batch in row_file.iter_batches(BATCH_ROWS, columns=selected):
                other_columns = batch.drop_columns([image_column]).to_pylist() or [{}] * len(batch)
                for scalar, values in zip(batch[image_column], other_columns, strict=True):
                    name = str(values[key]) if key and values[key] not in (None, "") else f"row-{row:09d}"
                    extra = to_extra({column: values[column] for column in carry})
                    if not has_lists:
                        yield list_row_image(*row_images(scalar.as_py())[0], f"{path}/{name}", path, row, extra)
                    else:
                        for number, image in enumerate(row_images(scalar.as_py() or [])):
                            offset = row * MAX_ROW_IMAGES + number
                            yield list_row_image(*image, f"{path}/{name}/{number}", path, offset, extra)
                    row += 1
    except NoImages:
        yield kind
    except pa.ArrowNotImplementedError as e:
        why = f"pyarrow cannot read {column}: {' '.join(str(e).split())[:200]}"
        yield ListedImage(path, 0, "unread", path, problem=f"UnreadColumn: {why}")
    except UnreadableColumn as e:
        yield ListedImage(path, 0, "unread", path, problem=f"UnreadColumn: {e}")
    except EOFError as e:
        yield ListedImage(path, 0, "cut", path, problem=f"CutShard: {e}")
    except (OSError, pa.ArrowException, UnicodeError) as e:
        if not is_damage(e):
            raise
        yield ListedImage(path, 0, "damaged", path, problem=f"BadShard: {' '.join(str(e).split())[:300]}")


def list_row_image(
    data: bytes, external_path: str | None, rel_path: str, path: str, offset: int, extra: str | None
) -> ListedImage:
    """Return one image of a shard as listed.

    Args:
        data: the encoded image; empty if it is null.
        external_path: the path next to the bytes, in a struct of Hugging Face datasets.
        rel_path: name of the image within the input.
        path: the shard.
        offset: as `ListedImage.offset`.
        extra: as `ListedImage.extra`.
    """
    problem = None
    if not data and external_path:
        problem = f"NoBytes: bytes is null, and there is only the path {external_path}. Write the file with embedded images"
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return ListedImage(rel_path, len(data), digest, path, offset, problem=problem, extra=extra)


class ParquetReader:
    """Reads the images of one Parquet shard. In ascending order, each row group is read once, a few rows at a time.

    Args:
        store: the location of the input.
        path: the shard.
        config: which column holds the images.
    """

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.parquet = pq.ParquetFile(store.open(path))
        self.column = find_image_column(self.parquet, path, config)
        self.has_lists = is_list(self.parquet.schema_arrow.field(self.column).type)
        groups = map(self.parquet.metadata.row_group, range(self.parquet.num_row_groups))
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        """The first row of each row group, then the number of all rows."""
        self._rows: Iterator[list[bytes]] = iter(())
        """The images of each row that is left in the open row group."""
        self._open_group = -1
        self._next_row = 0
        """The row that `_rows` returns next."""
        self._images: list[bytes] = []
        """The images of the row before `_next_row`."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the encoded image at an offset; the size is not needed.

        Raises:
            EOFError: when the shard does not have this row or image.
        """
        row, number = divmod(offset, MAX_ROW_IMAGES) if self.has_lists else (offset, 0)
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        if row + 1 < self._next_row or group != self._open_group:
            self._open_group, self._next_row = group, int(self._starts[group])
            batches = self.parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=[self.column])
            self._rows = (self._decode_row(scalar) for batch in batches for scalar in batch[self.column])
        while self._next_row <= row:
            images = next(self._rows, None)
            if images is None:
                raise EOFError(f"the shard has no row {row}")
            self._images, self._next_row = images, self._next_row + 1
        if number >= len(self._images):
            raise EOFError(f"row {row} has no image {number}")
        return self._images[number]

    def _decode_row(self, scalar: pa.Scalar) -> list[bytes]:
        value = scalar.as_py()
        return [data for data, _ in row_images((value or []) if self.has_lists else value)]


FORMAT = ShardFormat(SUFFIXES, index_parquet, ParquetReader)
