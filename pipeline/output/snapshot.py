"""The current state of an OUTPUT: for each image the newest row that counts, read as Arrow tables of some columns."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.tasks import TASKS
from imagemill.pipeline.errors import ConfigError, StorageError, first_of
from imagemill.pipeline.output.committed_rows import read_superseded
from imagemill.pipeline.output.parts import iterate_parts, list_parts
from imagemill.pipeline.schema import result_schema
from imagemill.pipeline.storage import Store

MODEL_COLUMNS = ["model_id", "checkpoint_sha256"]
PARTS_AHEAD = 4
"""Read before they are asked for; a part may be 256 MB in memory."""


@dataclass(frozen=True)
class Snapshot:
    """One row of each image, by where it lies; rows in the order of their parts. Arrays have one value an image."""

    output: Store
    task: str
    """Empty where OUTPUT is."""
    schema: pa.Schema
    """The columns of its rows."""
    parts: list[str]
    part: np.ndarray
    """int32 place of its part in `parts`."""
    row: np.ndarray
    """int32 place in its part."""
    rows: int
    """Committed rows that were looked at."""
    waiting: int
    """Images without a row that counts: a run that was cut off may have overwritten their files; the next one does them."""
    damaged: dict[str, str] | None = None
    """Parts that are left out, and what is wrong with each; grows as they are read. None: a damaged part is an error."""

    def __len__(self) -> int:
        return len(self.part)

    def select(self, keep: np.ndarray) -> "Snapshot":
        """Those of its images for which `keep` (bool) is true."""
        return replace(self, part=self.part[keep], row=self.row[keep])

    def check_columns(self, columns: list[str]) -> None:
        """Raises: ConfigError for columns that its rows do not have."""
        if unknown := [name for name in columns if name not in self.schema.names]:
            raise ConfigError(
                f"{self.output.url} has no column {', '.join(unknown)}; there are: {', '.join(self.schema.names)}"
            )

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Its rows with these columns, a part at a time; columns that a part of an older version lacks are null.

        Raises: ConfigError for columns that are not there; StorageError, also for a damaged part unless `damaged` takes it.
        """
        if self.task:
            self.check_columns(columns)
        if not len(self):
            return
        numbers, starts = np.unique(self.part, return_index=True)
        ends = [*starts[1:], len(self)]
        wanted = {self.parts[n]: self.row[start:end] for n, start, end in zip(numbers, starts, ends, strict=True)}
        for path, table in iterate_parts(self.output, wanted, columns, PARTS_AHEAD, self.schema, self.damaged):
            rows = wanted[path]
            yield table if len(rows) == len(table) else table.take(pa.array(rows))

    def where(self, condition: str) -> "Snapshot":
        """Those of its images for whose row an SQL condition holds, as DuckDB understands it.

        Columns that are not named in it are not read, so ten million rows cost what a few numbers cost.

        Raises: ConfigError when DuckDB does not understand it.
        """
        import duckdb

        named = set(re.findall(r"\w+", condition.lower()))
        columns = [name for name in self.schema.names if name.lower() in named]
        tables = list(self.tables(columns or ["image_id"]))
        rows = pa.concat_tables(tables) if tables else self.schema.empty_table().select(columns or ["image_id"])
        # A condition is not a way to other files.
        with duckdb.connect(config={"enable_external_access": "false"}) as sql:
            sql.register("rows", rows.append_column("__place", pa.array(np.arange(len(self)))))
            try:
                places = sql.execute(f"SELECT __place FROM rows WHERE ({condition}\n)").fetchnumpy()["__place"]
            except duckdb.Error as e:
                said = str(e).partition("\n\nLINE")[0].splitlines()[0]
                raise ConfigError(f"--where {condition!r}: {said}; columns: {', '.join(self.schema.names)}") from None
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
    """For each image of an OUTPUT its newest row whose files are still its own.

    Ten million rows take some 1 GB while they are sorted: identities are 16 bytes in arrays, never Python's.

    Args:
        run: the rows of this run alone, whatever came later.
        model: the rows of this model alone, by its name or the first digits of its checkpoint's digest.
        as_of: the state at the end of a day, YYYY-MM-DD in UTC, or at a time, YYYY-MM-DDTHH:MM:SS.
        damaged: empty, for what `Snapshot.damaged` holds. Of an image whose newest row lies in such a part an older row may
            take its place.

    Raises: ConfigError for a date that is none or before the first row, or a run or model that made no row; StorageError,
        for a damaged part, or with `damaged` where nothing but such parts is there.
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
    # Identity in two halves, fence, milliseconds, whether the row names files; part and row in it.
    found: list[list[np.ndarray]] = []
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
        found.append(
            [halves[:, 0], halves[:, 1], fencing_token, milliseconds, files, np.full(len(where), number, np.int32), where]
        )
    tasks = iterate_parts(output, parts, ["task"], ahead=1, damaged=damaged)
    first, task = next(((path, table["task"][0].as_py()) for path, table in tasks if len(table)), ("", ""))
    if damaged and not (found and task):
        raise no_readable_part(damaged)
    if rows and task not in TASKS:
        raise StorageError(f"{output.uri(first)}: a part of the task {task!r}, which is none of {', '.join(TASKS)}")
    schema = result_schema(TASKS[task].columns, TASKS[task].stores_latent) if task else pa.schema([])
    if not found:
        if run:
            raise ConfigError(f"{output.url}: no row is of run {run}; imagemill status lists them")
        if rows or model:
            raise ConfigError(f"{output.url}: {describe_missing_rows(output, parts, model, as_of)}")
        return Snapshot(output, task, schema, parts, np.empty(0, np.int32), np.empty(0, np.int32), rows, 0, damaged)
    high, low, fencing_token, milliseconds, files, part, row = (
        np.concatenate(arrays) for arrays in zip(*found, strict=True)
    )
    del found
    newest = newest_row_indexes([high, low], fencing_token, milliseconds)
    counts = np.ones(len(newest), bool)
    with_files = newest[files[newest]]
    if len(with_files) and not run:
        ids = bytes_to_ids(high[with_files], low[with_files])
        until = f"{moment:%Y%m%dT%H%M%SZ}" if moment else None
        counts[files[newest]] = read_superseded(output, ids, until) <= fencing_token[with_files]
    newest = newest[counts]
    return Snapshot(output, task, schema, parts, part[newest], row[newest], rows, int((~counts).sum()), damaged)


def no_readable_part(damaged: dict[str, str]) -> StorageError:
    """For who finds nothing beside damaged parts: what is wrong with them."""
    return StorageError(first_of(list(damaged.values())))


def describe_missing_rows(output: Store, parts: list[str], model: str | None, as_of: str | None) -> str:
    """Why an OUTPUT has no row of a model, or of a time: what it has."""
    models: set[tuple[str, str]] = set()
    times: list[datetime] = []
    for _, table in iterate_parts(output, parts, [*MODEL_COLUMNS, "encoded_at"], ahead=64):
        groups = table.group_by(MODEL_COLUMNS, use_threads=False).aggregate([("encoded_at", "min")])
        models |= {(str(row["model_id"]), str(row["checkpoint_sha256"])) for row in groups.to_pylist()}
        times += groups["encoded_at_min"].drop_null().to_pylist()
    if model and not any(name == model or sha256.startswith(model) for name, sha256 in models):
        them = ", ".join(sorted(f"{name} {sha256[:16]}" for name, sha256 in models))
        return f"no row is of model {model}; there are: {them or 'none'}"
    of_model = f" of model {model}" if model else ""
    return f"no row{of_model} is as old as --as-of {as_of}: the first of all is of {min(times):%Y-%m-%dT%H:%M:%S} (UTC)"


def parse_moment(text: str) -> datetime:
    """A day (its last microsecond) or a time, in UTC where it does not say. Raises: ConfigError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--as-of {text}: YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS is expected") from None
    if len(text) <= len("YYYY-MM-DD"):
        moment = datetime.combine(moment, time.max)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def newest_row_indexes(keys: list[np.ndarray], fencing_token: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """For each image, which `keys` (one or several numbers a row) tell apart, the place of its newest row; in order.

    The newest is that of the last run, which its fence tells; clocks of machines differ. What is equal in all is a double,
    of which the first counts.
    """
    order = np.lexsort((-encoded, -fencing_token, *keys[::-1]))
    first = np.zeros(len(order), bool)
    first[:1] = True
    for key in keys:
        ordered = key[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    return np.sort(order[first])


def select_newest_rows(table: pa.Table) -> pa.Table:
    """For each image_id of a table the newest of its rows, by the columns `fence` and, where it is there, `encoded_at`."""
    codes = table["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    fencing_token = table["fence"].cast(pa.int64()).fill_null(0).to_numpy()
    encoded = np.zeros(len(table), np.int64)
    if "encoded_at" in table.schema.names:
        encoded = table["encoded_at"].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy()
    return table.take(pa.array(newest_row_indexes([codes], fencing_token, encoded)))


def ids_to_bytes(ids: pa.ChunkedArray, uri: str) -> np.ndarray:
    """Identities of 32 hex digits as their 16 bytes, (N,) S16. Raises: StorageError that names the part with others."""
    try:
        fixed = ids.combine_chunks().cast(pa.binary()).cast(pa.binary(32))
        digits = fixed.buffers()[1].to_pybytes()[32 * fixed.offset :][: 32 * len(fixed)]
        return np.frombuffer(bytes.fromhex(digits.decode()), "S16")
    except (pa.ArrowException, ValueError):
        raise StorageError(f"{uri}: a part whose image_id are not of 32 hex digits") from None


def bytes_to_ids(high: np.ndarray, low: np.ndarray) -> pa.Array:
    """What `identities` gave, back to strings."""
    digits = np.stack([high, low], 1).astype(">u8").tobytes().hex().encode()
    offsets = np.arange(len(high) + 1, dtype=np.int64) * 32
    return pa.LargeStringArray.from_buffers(len(high), pa.py_buffer(offsets), pa.py_buffer(digits)).cast(pa.string())
