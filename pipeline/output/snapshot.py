"""Snapshots: for each image of an OUTPUT its newest row that counts, read as Arrow tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.tasks import TASKS
from imagemill.pipeline.errors import ConfigError, StorageError, join_first
from imagemill.pipeline.output.committed_rows import read_pruned_ids, read_superseded
from imagemill.pipeline.output.parts import iterate_parts, list_parts
from imagemill.pipeline.schema import result_schema
from imagemill.pipeline.storage import Store

MODEL_COLUMNS = ["model_id", "checkpoint_sha256"]
PARTS_AHEAD = 4
"""Parts that are read before they are needed. A part may take 256 MB in memory."""


@dataclass(frozen=True)
class Snapshot:
    """The positions of one row per image, in the order of the parts. Arrays have one value per image."""

    output: Store
    task: str
    """Empty if OUTPUT has no rows."""
    schema: pa.Schema
    """The columns of the rows."""
    parts: list[str]
    """Paths of the parts."""
    part: np.ndarray
    """int32: index of the row's part in `parts`."""
    row: np.ndarray
    """int32: index of the row in its part."""
    rows: int
    """Committed rows that were read."""
    waiting: int
    """Images whose files may have been overwritten by a run that was cut off. The next run processes them again."""
    damaged: dict[str, str] | None = None
    """Path and problem of damaged parts, which are left out. It grows as parts are read. None: a damaged part raises."""

    def __len__(self) -> int:
        return len(self.part)

    def select(self, keep: np.ndarray) -> "Snapshot":
        """Return the snapshot of the images for which `keep`, (N,) bool, is true."""
        return replace(self, part=self.part[keep], row=self.row[keep])

    def check_columns(self, columns: list[str]) -> None:
        """Raise ConfigError if the rows lack one of the columns."""
        if unknown := [name for name in columns if name not in self.schema.names]:
            raise ConfigError(
                f"{self.output.url} has no column {', '.join(unknown)}. Its columns: {', '.join(self.schema.names)}"
            )

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yield the rows with some columns, one table per part. Columns that a part of an older version lacks are null.

        Raises:
            ConfigError: when a column does not exist.
            StorageError: when a part cannot be read, or is damaged and `damaged` is None.
        """
        if self.task:
            self.check_columns(columns)
        if not len(self):
            return
        numbers, starts = np.unique(self.part, return_index=True)
        ends = [*starts[1:], len(self)]
        rows_by_part = {self.parts[n]: self.row[start:end] for n, start, end in zip(numbers, starts, ends, strict=True)}
        for path, table in iterate_parts(self.output, rows_by_part, columns, PARTS_AHEAD, self.schema, self.damaged):
            rows = rows_by_part[path]
            yield table if len(rows) == len(table) else table.take(pa.array(rows))

    def where(self, condition: str) -> "Snapshot":
        """Return the snapshot of the images whose row fulfils an SQL condition of DuckDB.

        Only the columns that the condition names are read, so conditions on numbers are fast even for ten million rows.

        Raises:
            ConfigError: when the condition is not valid.
        """
        import duckdb

        named = set(re.findall(r"\w+", condition.lower()))
        columns = [name for name in self.schema.names if name.lower() in named]
        tables = list(self.tables(columns or ["image_id"]))
        rows = pa.concat_tables(tables) if tables else self.schema.empty_table().select(columns or ["image_id"])
        # A condition must not read other files.
        with duckdb.connect(config={"enable_external_access": "false"}) as sql:
            sql.register("rows", rows.append_column("__place", pa.array(np.arange(len(self)))))
            try:
                places = sql.execute(f"SELECT __place FROM rows WHERE ({condition}\n)").fetchnumpy()["__place"]
            except duckdb.Error as e:
                problem = str(e).partition("\n\nLINE")[0].splitlines()[0]
                raise ConfigError(f"--where {condition!r}: {problem}. Columns: {', '.join(self.schema.names)}") from None
        keep = np.zeros(len(self), bool)
        keep[np.asarray(places, np.int64)] = True
        return self.select(keep)


def read_snapshot(
    output: Store,
    run: str | None = None,
    as_of: str | None = None,
    model: str | None = None,
    damaged: dict[str, str] | None = None,
) -> Snapshot:
    """Find the newest row of each image whose output files are still those of the row.

    Ten million rows take about 1 GB while they are sorted, because image ids are 16 bytes in arrays, not Python objects.

    Args:
        output: the OUTPUT.
        run: only rows of this run, even if later runs made newer ones.
        as_of: the state at the end of a day, YYYY-MM-DD in UTC, or at a time, YYYY-MM-DDTHH:MM:SS.
        model: only rows of this model, by its name or the first digits of its checkpoint's digest.
        damaged: an empty dict to leave damaged parts out (`Snapshot.damaged`). If the newest row of an image is in a damaged
            part, an older row may take its place.

    Raises:
        ConfigError: when the date is invalid or before the first row, or the run or model made no row.
        StorageError: when a part is damaged, or with `damaged` when all parts are.
    """
    moment = parse_moment(as_of) if as_of else None
    parts = list_parts(output, "results")
    columns = [
        "image_id",
        "fence",
        "encoded_at",
        "output_bytes",
        *(["run_id"] if run else []),
        *(MODEL_COLUMNS if model else []),
    ]
    # One list per part: both halves of the image id, fencing token, milliseconds, whether the row names files, part, row.
    arrays_of_parts: list[list[np.ndarray]] = []
    rows = 0
    number_of = {path: number for number, path in enumerate(parts)}
    for path, table in iterate_parts(output, parts, columns, ahead=64, damaged=damaged):
        number = number_of[path]
        rows += len(table)
        where = np.arange(len(table), dtype=np.int32)
        if run:
            where = where[pc.equal(table["run_id"], run).fill_null(False).to_numpy()]
        if model:
            named = pc.or_(pc.equal(table["model_id"], model), pc.starts_with(table["checkpoint_sha256"], model))
            where = where[named.fill_null(False).to_numpy()[where]]
        if moment:
            where = where[pc.less_equal(table["encoded_at"], pa.scalar(moment, table["encoded_at"].type)).to_numpy()[where]]
        if len(where) == 0:
            continue
        table = table.take(pa.array(where))
        halves = ids_to_bytes(table["image_id"], output.uri(path)).view(">u8").reshape(-1, 2).astype(np.uint64)
        fencing_token = table["fence"].fill_null(0).to_numpy()
        milliseconds = table["encoded_at"].cast(pa.int64()).to_numpy()
        files = pc.is_valid(table["output_bytes"]).to_numpy()
        arrays_of_parts.append(
            [halves[:, 0], halves[:, 1], fencing_token, milliseconds, files, np.full(len(where), number, np.int32), where]
        )
    tasks = iterate_parts(output, parts, ["task"], ahead=1, damaged=damaged)
    first, task = next(((path, table["task"][0].as_py()) for path, table in tasks if len(table)), ("", ""))
    if damaged and not (arrays_of_parts and task):
        raise no_readable_part(damaged)
    if rows and task not in TASKS:
        raise StorageError(f"{output.uri(first)}: unknown task {task!r}; valid: {', '.join(TASKS)}")
    schema = result_schema(TASKS[task].columns, TASKS[task].stores_latent) if task else pa.schema([])
    if not arrays_of_parts:
        if run:
            raise ConfigError(f"{output.url}: run {run} has no rows. `imagemill status` lists the runs")
        if rows or model:
            raise ConfigError(f"{output.url}: {describe_missing_rows(output, parts, model, as_of)}")
        return Snapshot(output, task, schema, parts, np.empty(0, np.int32), np.empty(0, np.int32), rows, 0, damaged)
    high, low, fencing_token, milliseconds, files, part, row = (
        np.concatenate(arrays) for arrays in zip(*arrays_of_parts, strict=True)
    )
    del arrays_of_parts
    newest = newest_row_indexes([high, low], fencing_token, milliseconds)
    if len(pruned := read_pruned_ids(output)):
        is_pruned = pc.is_in(bytes_to_ids(high[newest], low[newest]), value_set=pruned)
        newest = newest[~is_pruned.to_numpy(zero_copy_only=False)]
    counts = np.ones(len(newest), bool)
    with_files = newest[files[newest]]
    if len(with_files) and not run:
        ids = bytes_to_ids(high[with_files], low[with_files])
        until = f"{moment:%Y%m%dT%H%M%SZ}" if moment else None
        counts[files[newest]] = read_superseded(output, ids, until) <= fencing_token[with_files]
    newest = newest[counts]
    return Snapshot(output, task, schema, parts, part[newest], row[newest], rows, int((~counts).sum()), damaged)


def no_readable_part(damaged: dict[str, str]) -> StorageError:
    """Return the error for an OUTPUT whose parts are all damaged."""
    return StorageError(join_first(list(damaged.values())))


def describe_missing_rows(output: Store, parts: list[str], model: str | None, as_of: str | None) -> str:
    """Explain why an OUTPUT has no rows of a model or as old as a time, by what it has."""
    models: set[tuple[str, str]] = set()
    times: list[datetime] = []
    for _, table in iterate_parts(output, parts, [*MODEL_COLUMNS, "encoded_at"], ahead=64):
        groups = table.group_by(MODEL_COLUMNS, use_threads=False).aggregate([("encoded_at", "min")])
        models |= {(str(row["model_id"]), str(row["checkpoint_sha256"])) for row in groups.to_pylist()}
        times += groups["encoded_at_min"].drop_null().to_pylist()
    if model and not any(name == model or sha256.startswith(model) for name, sha256 in models):
        names = ", ".join(sorted(f"{name} {sha256[:16]}" for name, sha256 in models))
        return f"model {model} has no rows. Models with rows: {names or 'none'}"
    of_model = f" of model {model}" if model else ""
    return f"no row{of_model} is as old as --as-of {as_of}. The oldest row is of {min(times):%Y-%m-%dT%H:%M:%S} (UTC)"


def parse_moment(text: str) -> datetime:
    """Parse a day (its last microsecond) or a time, in UTC unless the text says otherwise.

    Raises:
        ConfigError: when the text is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--as-of {text}: YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS is expected") from None
    if len(text) <= len("YYYY-MM-DD"):
        moment = datetime.combine(moment, time.max)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def newest_row_indexes(keys: list[np.ndarray], fencing_token: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """Return the index of the newest row of each image, in ascending order.

    The newest row is that of the last run, by its fencing token, because the clocks of machines differ. If rows are equal in
    everything, the first one counts.

    Args:
        keys: one or more integer arrays (N,) that together identify the image of a row.
        fencing_token: fencing token of each row, (N,) int64.
        encoded: time of each row, (N,) int64.
    """
    order = np.lexsort((-encoded, -fencing_token, *keys[::-1]))
    first = np.zeros(len(order), bool)
    first[:1] = True
    for key in keys:
        ordered = key[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    return np.sort(order[first])


def select_newest_rows(table: pa.Table) -> pa.Table:
    """Return the newest row of each image_id, by the column `fence` and, if it exists, `encoded_at`."""
    codes = table["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    fencing_token = table["fence"].cast(pa.int64()).fill_null(0).to_numpy()
    encoded = np.zeros(len(table), np.int64)
    if "encoded_at" in table.schema.names:
        encoded = table["encoded_at"].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy()
    return table.take(pa.array(newest_row_indexes([codes], fencing_token, encoded)))


def ids_to_bytes(ids: pa.ChunkedArray, uri: str) -> np.ndarray:
    """Return image ids of 32 hex digits as 16 bytes each, (N,) S16.

    Args:
        ids: the image ids.
        uri: the part with these ids, for the message.

    Raises:
        StorageError: when an id does not have 32 hex digits.
    """
    try:
        fixed = ids.combine_chunks().cast(pa.binary()).cast(pa.binary(32))
        digits = fixed.buffers()[1].to_pybytes()[32 * fixed.offset :][: 32 * len(fixed)]
        return np.frombuffer(bytes.fromhex(digits.decode()), "S16")
    except (pa.ArrowException, ValueError):
        raise StorageError(f"{uri}: an image_id does not have 32 hex digits") from None


def bytes_to_ids(high: np.ndarray, low: np.ndarray) -> pa.Array:
    """Return image ids as strings of 32 hex digits.

    Args:
        high: the first 8 bytes of each id, (N,) uint64.
        low: the last 8 bytes of each id, (N,) uint64.
    """
    digits = np.stack([high, low], 1).astype(">u8").tobytes().hex().encode()
    offsets = np.arange(len(high) + 1, dtype=np.int64) * 32
    return pa.LargeStringArray.from_buffers(len(high), pa.py_buffer(offsets), pa.py_buffer(digits)).cast(pa.string())
