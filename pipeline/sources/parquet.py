"""Parquet shards: a column of encoded images, and one that names them where there is one."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.sources.source import Found, Listed, ShardFormat, SourceConfig, carried
from pipeline.storage import Store
from pipeline.store_failures import is_damage

SUFFIXES = (".parquet",)
IMAGE_NAMES = ("image", "bytes", "img", "jpg", "jpeg", "png", "webp", "content", "data")
KEY_NAMES = ("key", "__key__", "id", "image_id", "file_name", "filename", "name", "path", "url", "uri")
BATCH_ROWS = 16
"""Rows decoded at a time, so that a row group of any size fits into memory."""


class NoImages(Exception):
    """A Parquet file without a column of encoded images."""


def image_column(schema: pa.Schema, config: SourceConfig) -> str:
    """The column that holds encoded images: the one named, one of the usual names, else the only binary one.

    Raises: ConfigError when the one named is not there or of another kind; NoImages.
    """
    found = [field.name for field in schema if is_bytes(field.type)]
    if config.image:
        if config.image in found:
            return config.image
        raise ConfigError(
            f"source.image = {config.image!r}: no column of bytes; those that are: {', '.join(found) or 'none'}"
        )
    usual = [name for name in IMAGE_NAMES if name in found]
    if usual or len(found) == 1:
        return (usual or found)[0]
    raise NoImages(f"columns: {', '.join(schema.names)}")


def is_bytes(kind: pa.DataType) -> bool:
    """Binary, or the struct of bytes and path in which datasets keep images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def key_column(schema: pa.Schema, config: SourceConfig) -> str | None:
    """The column that names images. Raises: ConfigError when the one named is not there."""
    if config.key and config.key not in schema.names:
        raise ConfigError(f"source.key = {config.key!r}; the file's columns: {', '.join(schema.names)}")
    return config.key or next(
        (name for name in KEY_NAMES if name in schema.names and not is_bytes(schema.field(name).type)), None
    )


def index(store: Store, path: str, config: SourceConfig) -> Iterator[Found]:
    """As ShardFormat.index; a file without images counts as one other file. The etag is a digest of an image's bytes.

    Raises: ConfigError when a column that the config names is not there.
    """
    try:
        with store.fs.open(store.full(path), "rb") as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            image, key = image_column(schema, config), key_column(schema, config)
            missing = set(config.carry or ()) - set(schema.names)
            if missing:
                raise ConfigError(f"source.carry = {sorted(missing)}; the columns of {path}: {', '.join(schema.names)}")
            columns = [image, *([key] if key else []), *(config.carry or ())]
            row = 0
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                for data, rest in zip(
                    values(batch[image]), batch.drop_columns([image]).to_pylist() or [{}] * len(batch), strict=True
                ):
                    name = str(rest[key]) if key and rest[key] is not None else f"row-{row:09d}"
                    extra = {column: rest[column] for column in config.carry or ()}
                    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
                    yield Listed(f"{path}/{name}", len(data), digest, path, row, extra=carried(extra))
                    row += 1
    except NoImages:
        yield "parquet"
    except (OSError, pa.ArrowException, UnicodeError) as e:
        if not is_damage(e):
            raise
        yield Listed(path, 0, "damaged", path, problem=f"BadShard: {' '.join(str(e).split())[:300]}")


def values(column: pa.Array) -> Iterator[bytes]:
    """The encoded images of a column; none is an empty one."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    for scalar in column:
        yield scalar.as_py() or b""


class Reader:
    """As ShardReader; row groups are read a few rows at a time, once, if asked in order."""

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.parquet = pq.ParquetFile(store.fs.open(store.full(path), "rb"))
        self.column = image_column(self.parquet.schema_arrow, config)
        groups = map(self.parquet.metadata.row_group, range(self.parquet.num_row_groups))
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        """The first row of each row group, and the number of all rows."""
        self._rows: Iterator[bytes] = iter(())
        self._open = -1
        """The row group that `_rows` comes from."""
        self._next = 0
        """The row that `_rows` gives next."""

    def read(self, offset: int, size: int) -> bytes:
        group = int(np.searchsorted(self._starts, offset, "right")) - 1
        if offset < self._next or group != self._open:
            self._open, self._next = group, int(self._starts[group])
            batches = self.parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=[self.column])
            self._rows = (data for batch in batches for data in values(batch[self.column]))
        for data in self._rows:
            self._next += 1
            if self._next > offset:
                return data
        raise EOFError(f"row {offset} is not there")


FORMAT = ShardFormat(SUFFIXES, index, Reader)
