"""Parquet shards: a column of encoded images, or of lists of them, and one that names them where there is one."""

import hashlib
from collections.abc import Iterator
from typing import Any

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
KEY_NAMES = ("key", "__key__", "id", "image_id", "file_name", "filename", "name", "path", "url", "uri")
BATCH_ROWS = 16
"""Rows decoded at a time, so that a row group of any size fits into memory."""
SAMPLED_ROWS = 256
"""Of which the bytes of columns are looked at, where no name tells which of them are images."""
MAX_ROW_IMAGES = 1 << 24
"""Images of one row, in the place of an image: row * MOST_IN_ROW + number, where the column is of lists."""


class NoImages(Exception):
    """A Parquet file without a column of encoded images."""


class UnreadableColumn(Exception):
    """A Parquet file whose images cannot be read, or cannot be told; says which columns, and what to do."""


def find_image_column(file: pq.ParquetFile, path: str, config: SourceConfig) -> str:
    """The column that holds encoded images: the one named, one of the usual names, else the only one of bytes.

    Where several columns are of bytes and none has a usual name, it is the one whose bytes begin as an image does.

    Raises: ConfigError when the one named is not there or of another kind; NoImages; Unread.
    """
    schema = file.schema_arrow
    found = [field.name for field in schema if holds_images(field.type)]
    if config.image:
        check_columns_exist(schema.names, path, "image", [config.image])
        if config.image in found:
            return config.image
        what, others = (
            describe_columns(schema, [config.image]),
            describe_columns(schema, found) or "none",
        )
        raise ConfigError(f"source.image = {config.image!r}: {path}: {what} is no column of images; valid: {others}")
    if twice := sorted({name for name in found if schema.names.count(name) > 1}):
        raise UnreadableColumn(f"several columns are called {', '.join(twice)}: rename them")
    usual = [name for name in IMAGE_NAMES if name in found]
    # Bytes of a fixed size are a digest rather than a picture.
    varied = [name for name in found if not pa.types.is_fixed_size_binary(value_type(schema.field(name).type))]
    if usual or len(varied) == 1:
        return (usual or varied)[0]
    pictures = sample_image_columns(file, [field.name for field in schema if holds_binary(field.type)])
    bound = [name for name in IMAGE_NAMES if name in schema.names and holds_binary(schema.field(name).type)]
    if deep := [name for name in dict.fromkeys([*bound, *pictures]) if name not in found]:
        raise UnreadableColumn(
            f"{describe_columns(schema, deep)}: images at this depth are not read. A column of images is "
            "binary, a struct with bytes, or a list of one of them"
        )
    if len(pictures) > 1:
        raise UnreadableColumn(f"{describe_columns(schema, pictures)}: all of them hold images: name one in source.image")
    if pictures:
        return pictures[0]
    raise NoImages


def sample_image_columns(file: pq.ParquetFile, names: list[str]) -> list[str]:
    """Those of some columns in whose first rows there are bytes that begin as an image does, however deep."""
    pictures: set[str] = set()
    rows = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=names) if names else ():
        pictures |= {name for name in names if any(map(has_image_signature, iterate_bytes(batch[name].to_pylist())))}
        rows += len(batch)
        if rows >= SAMPLED_ROWS:
            break
    return [name for name in names if name in pictures]


def iterate_bytes(value: Any) -> Iterator[bytes]:
    """All bytes in a value of lists, tuples and structs."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from iterate_bytes(inner)


def row_images(value: Any) -> list[tuple[bytes, str | None]]:
    """The images of a row, each with the path that a struct gives it; one that is null has no bytes."""
    if isinstance(value, list):
        return [image for inner in value for image in row_images(inner)]
    if isinstance(value, dict):
        return [(value["bytes"] or b"", value.get("path"))]
    return [(value or b"", None)]


def find_key_column(schema: pa.Schema, path: str, config: SourceConfig) -> str | None:
    """The column that names images. Raises: ConfigError when the one named is not there, or cannot name any."""
    if config.key:
        check_key(schema, path, config.key)
        return config.key
    once = (name for name in KEY_NAMES if schema.names.count(name) == 1)
    return next((name for name in once if can_name_images(schema.field(name).type)), None)


def index_parquet(store: Store, path: str, config: SourceConfig) -> Iterator[ListedEntry]:
    """As ShardFormat.index; a file without images counts as one other file. The etag is a digest of an image's bytes.

    Raises: ConfigError when a column that the config names is not there, or not of a kind that it can be.
    """
    column = "its columns"
    try:
        with store.fs.open(store.full(path), "rb") as file:
            parquet = pq.ParquetFile(file)
            schema, carry = parquet.schema_arrow, config.carry or []
            image, key = find_image_column(parquet, path, config), find_key_column(schema, path, config)
            check_carry(schema, path, carry)
            column, has_lists = (
                describe_columns(schema, [image]),
                is_list(schema.field(image).type),
            )
            wanted = list(dict.fromkeys([image, *([key] if key else []), *carry]))
            row = 0
            for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted):
                named = batch.drop_columns([image]).to_pylist() or [{}] * len(batch)
                for scalar, rest in zip(batch[image], named, strict=True):
                    name = str(rest[key]) if key and rest[key] not in (None, "") else f"row-{row:09d}"
                    extra = to_extra({column: rest[column] for column in carry})
                    if not has_lists:
                        yield list_row_image(*row_images(scalar.as_py())[0], f"{path}/{name}", path, row, extra)
                    else:
                        for number, one in enumerate(row_images(scalar.as_py() or [])):
                            yield list_row_image(*one, f"{path}/{name}/{number}", path, row * MAX_ROW_IMAGES + number, extra)
                    row += 1
    except NoImages:
        yield "parquet"
    except pa.ArrowNotImplementedError as e:
        why = f"pyarrow cannot read {column}: {' '.join(str(e).split())[:200]}"
        yield ListedImage(path, 0, "unread", path, problem=f"UnreadColumn: {why}")
    except UnreadableColumn as e:
        yield ListedImage(path, 0, "unread", path, problem=f"UnreadColumn: {e}")
    except (OSError, pa.ArrowException, UnicodeError) as e:
        if not is_damage(e):
            raise
        yield ListedImage(path, 0, "damaged", path, problem=f"BadShard: {' '.join(str(e).split())[:300]}")


def list_row_image(
    data: bytes, elsewhere: str | None, rel_path: str, path: str, offset: int, extra: str | None
) -> ListedImage:
    """One image of a shard. Args: elsewhere: the path that stands in the row next to the bytes."""
    problem = None
    if not data and elsewhere:
        problem = f"NoBytes: bytes is null, and only the path {elsewhere} is there: write the file with the images in it"
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return ListedImage(rel_path, len(data), digest, path, offset, problem=problem, extra=extra)


class ParquetReader:
    """As ShardReader; row groups are read a few rows at a time, once, if asked in order."""

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.parquet = pq.ParquetFile(store.fs.open(store.full(path), "rb"))
        self.column = find_image_column(self.parquet, path, config)
        self.is_list = is_list(self.parquet.schema_arrow.field(self.column).type)
        groups = map(self.parquet.metadata.row_group, range(self.parquet.num_row_groups))
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        """The first row of each row group, and the number of all rows."""
        self._rows: Iterator[list[bytes]] = iter(())
        self._open = -1
        """The row group that `_rows` comes from."""
        self._next = 0
        """The row that `_rows` gives next."""
        self._images: list[bytes] = []
        """Of the row before it."""

    def read(self, offset: int, size: int) -> bytes:
        row, number = divmod(offset, MAX_ROW_IMAGES) if self.is_list else (offset, 0)
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        if row + 1 < self._next or group != self._open:
            self._open, self._next = group, int(self._starts[group])
            batches = self.parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=[self.column])
            self._rows = (self._of(scalar) for batch in batches for scalar in batch[self.column])
        while self._next <= row:
            images = next(self._rows, None)
            if images is None:
                raise EOFError(f"row {row} is not there")
            self._images, self._next = images, self._next + 1
        if number >= len(self._images):
            raise EOFError(f"row {row} has no image {number}")
        return self._images[number]

    def _of(self, scalar: pa.Scalar) -> list[bytes]:
        value = scalar.as_py()
        return [data for data, _ in row_images((value or []) if self.is_list else value)]


FORMAT = ShardFormat(SUFFIXES, index_parquet, ParquetReader)
