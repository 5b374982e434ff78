"""Arrow shards (IPC streams and files), as `save_to_disk` of Hugging Face datasets writes them."""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from imagemill.pipeline.sources.parquet import BATCH_ROWS, MAX_ROW_IMAGES, find_image_column, index_rows, row_images
from imagemill.pipeline.sources.parquet_columns import is_list
from imagemill.pipeline.sources.source import ListedEntry, ShardFormat, SourceConfig
from imagemill.pipeline.storage import Store

SUFFIXES = (".arrow",)
FILE_MAGIC = b"ARROW1"
"""First bytes of an IPC file. An IPC stream begins with its schema."""
CONTINUATION = b"\xff\xff\xff\xff"
"""First bytes of each message of a stream, except in streams of Arrow before 0.15."""
STREAM_END = CONTINUATION + bytes(4)
"""Last bytes of a complete stream. pyarrow takes a stream that was cut off between two batches for a complete one."""
CACHE_PREFIX, STATE_FILE = "cache-", "state.json"
"""`map` and `filter` of datasets leave results of this name next to the data, in a folder with this file."""


class ArrowFile:
    """An Arrow IPC file or stream with the part of the interface of `pq.ParquetFile` that shards need.

    Args:
        file: the content; must be seekable.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(len(FILE_MAGIC))
        self._is_stream, self._has_end = head != FILE_MAGIC, head.startswith(CONTINUATION)
        self.schema_arrow: pa.Schema = self._open().schema

    def _open(self) -> "pa.RecordBatchStreamReader | pa.RecordBatchFileReader":
        self._file.seek(0)
        return (pa.ipc.open_stream if self._is_stream else pa.ipc.open_file)(self._file)

    def iter_batches(self, batch_size: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, at most `batch_size` at a time.

        Raises:
            EOFError: when a stream has no end mark.
            OSError, pa.ArrowException: when the content is damaged.
        """
        reader = self._open()
        batches = reader if self._is_stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            selected = batch.select(columns)
            for start in range(0, len(selected), batch_size):
                yield selected.slice(start, batch_size)
        if self._has_end:
            self._file.seek(-len(STREAM_END), io.SEEK_END)
            if self._file.read() != STREAM_END:
                raise EOFError("the file ends without an end mark: it was cut off or is still being written")


def index_arrow(store: Store, path: str, config: SourceConfig) -> Iterator[ListedEntry]:
    """List the images of an Arrow shard, like `ShardFormat.index`. Caches of datasets count as other files."""
    place = PurePosixPath(path)
    if place.name.startswith(CACHE_PREFIX) and store.exists(str(place.with_name(STATE_FILE))):
        yield SUFFIXES[0][1:]
        return
    yield from index_rows(ArrowFile, SUFFIXES[0][1:], store, path, config)


class ArrowReader:
    """Reads the images of one Arrow shard. In ascending order, the shard is read once, a few rows at a time.

    Args:
        store: the location of the input.
        path: the shard.
        config: which column holds the images.
    """

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.file = ArrowFile(store.open(path))
        self.column = find_image_column(self.file, path, config)
        self.has_lists = is_list(self.file.schema_arrow.field(self.column).type)
        self._rewind()

    def _rewind(self) -> None:
        self._batches = self.file.iter_batches(BATCH_ROWS, [self.column])
        self._batch: pa.Array = pa.array([])
        self._first_row = 0
        """The row of the shard at which `_batch` begins."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the encoded image at an offset; the size is not needed.

        Raises:
            EOFError: when the shard does not have this row or image.
        """
        row, number = divmod(offset, MAX_ROW_IMAGES) if self.has_lists else (offset, 0)
        if row < self._first_row:
            self._rewind()
        while row >= self._first_row + len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                raise EOFError(f"the shard has no row {row}")
            self._first_row, self._batch = self._first_row + len(self._batch), batch[self.column]
        value = self._batch[row - self._first_row].as_py()
        images = row_images((value or []) if self.has_lists else value)
        if number >= len(images):
            raise EOFError(f"row {row} has no image {number}")
        return images[number][0]


FORMAT = ShardFormat(SUFFIXES, index_arrow, ArrowReader)
