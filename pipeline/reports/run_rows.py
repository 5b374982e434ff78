"""Read the rows that a run committed: figures of all rows, and all columns of a few."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.latent_symbols import iterate_latent_rows
from imagemill.pipeline.output.parts import read_part, scan_parts
from imagemill.pipeline.schema import FITTING
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.report")
THREADS = 4
LATENTS_AT_ONCE = 8


@dataclass(frozen=True)
class RowPosition:
    """The part and the row number of a row."""

    part: str
    row: int


@dataclass(frozen=True)
class RunRows:
    """Figures of the rows of a run, as arrays with one value per row, so that millions of rows fit into memory."""

    parts: list[str]
    part: np.ndarray
    """Index of the row's part in `parts`."""
    row: np.ndarray
    """Row number in the part."""
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.part)

    def position(self, n: int) -> RowPosition:
        """Return the position of row n."""
        return RowPosition(self.parts[self.part[n]], int(self.row[n]))


def read_run_rows(output: Store, parts: list[str], run_id: str, columns: list[str]) -> RunRows:
    """Read figures of all rows that a run committed, a few parts at a time.

    Args:
        output: the output.
        parts: the parts that may hold rows of the run.
        run_id: the run.
        columns: numbers or times to read; a column that a part lacks is NaN.

    Raises:
        StorageError: when a part cannot be read.
    """
    part, row = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    values: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in columns}
    index_of = {path: n for n, path in enumerate(parts)}
    for table in scan_parts(output, parts, ["run_id", *columns]):
        # The rows of a part are contiguous and in their order.
        codes = table["part"].combine_chunks().dictionary_encode()
        code, first = codes.indices.to_numpy(), np.unique(codes.indices.to_numpy(), return_index=True)[1]
        is_of_run = pc.equal(table["run_id"], run_id).to_numpy(zero_copy_only=False)
        indices = np.array([index_of[path] for path in codes.dictionary.to_pylist()], np.int32)
        part.append(indices[code][is_of_run])
        row.append((np.arange(len(table)) - first[code])[is_of_run].astype(np.int32))
        for name in columns:
            column = table[name] if name in table.schema.names else pa.nulls(len(table), pa.float64())
            column = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
            numbers = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
            values[name].append(numbers[is_of_run])
    figures = {name: np.concatenate(arrays) for name, arrays in values.items()}
    return RunRows(parts, np.concatenate(part), np.concatenate(row), figures)


def read_part_rows(output: Store, part: str, numbers: set[int], columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read some rows of a part by their row numbers, with at most LATENTS_AT_ONCE latents in memory.

    A damaged part ends the iteration with a warning.
    """
    try:
        if "latent" not in columns:
            table = read_part(output, part, columns, pa.schema(FITTING))
            yield from zip(sorted(numbers), table.take(pa.array(sorted(numbers))).to_pylist(), strict=True)
            return
        with output.open(part) as f, pq.ParquetFile(f, page_checksum_verification=True) as file:
            existing = [name for name in columns if name in file.schema_arrow.names]
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = sorted(n for n in numbers if start <= n < end)
                if wanted:
                    batches = file.iter_batches(LATENTS_AT_ONCE, row_groups=[group], columns=existing, use_threads=False)
                    yield from take_rows(batches, start, wanted)
                start = end
    except store_failures(StorageError, pa.ArrowException) as e:
        log.warning("%s: the report shows no image of this part: %s", part, reason(e))


def take_rows(batches: Iterator[pa.RecordBatch], start: int, numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows with the given ascending numbers, of batches whose first row has the number `start`."""
    for batch in batches:
        in_batch = [n for n in numbers if start <= n < start + len(batch)]
        # Taking all rows would copy their latents.
        is_whole = len(in_batch) == len(batch)
        rows = batch if is_whole else batch.take(pa.array([n - start for n in in_batch], pa.int64()))
        yield from zip(in_batch, iterate_latent_rows(rows), strict=True)
        start += len(batch)
        if start > numbers[-1]:
            return


def read_rows(output: Store, positions: set[RowPosition], columns: list[str]) -> dict[RowPosition, dict[str, Any]]:
    """Read rows by their positions; rows of a damaged part are left out."""
    by_part: dict[str, set[int]] = {}
    for position in positions:
        by_part.setdefault(position.part, set()).add(position.row)

    def read(part: str) -> dict[RowPosition, dict[str, Any]]:
        return {RowPosition(part, number): row for number, row in read_part_rows(output, part, by_part[part], columns)}

    with ThreadPoolExecutor(THREADS) as pool:
        return {position: row for rows in pool.map(read, by_part) for position, row in rows.items()}
