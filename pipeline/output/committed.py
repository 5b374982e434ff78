"""What OUTPUT holds already, read two million rows at a time: ten million committed images must fit beside a listing."""

import json
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import DamagedPart, StorageError
from imagemill.pipeline.output.origins import moved, numbered
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, is_damage, reason
from imagemill.pipeline.store_listing import Entry

KEYS = ["image_id", "version"]
SUPERSEDED = "superseded.parquet"
"""Below runs/ID: images that the run was to do again, and whose older rows it may have robbed of their files."""
LOST_ROWS = "move it out of OUTPUT, and the next run makes its images again, where INPUT still holds them"
LOST_MARKS = (
    "it says which older rows lost their files: restore it. Where that cannot be, delete it, run imagemill verify, and move "
    "the parts of the rows whose files it names out of OUTPUT: the next run makes those images again"
)
LAST_RUNS = 100
"""Of which something is asked: a night without anything new leaves a run too."""
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+")
NOTES = "runs/replaced"
"""Which parts take, or are to take, the place of which (replaced.py)."""
NOTE = re.compile(r"[0-9a-f]{32}\.json")
SCANNED_AT_A_TIME = 2_000_000
THREADS = 16
LISTINGS = 3


def part_paths(output: Store, folder: str) -> list[str]:
    """The committed parts of `results` or `rejects`; of parts that are being replaced the new one, once it is there.

    Raises: StorageError, also for a part that is no file, and when parts are replaced faster than they are listed.
    """
    before = None
    for _ in range(LISTINGS):
        there = (e for e in output.entries(folder) if e.path.endswith(".parquet") and "/." not in f"/{e.path}")
        found = {openable(output, entry) for entry in there}
        known = [(note["new"], set(note["old"])) for _, note in notes(output)]
        known = [(new, old) for new, old in known if any(path.startswith(f"{folder}/") for path in old)]
        replaced = set().union(*(old for _, old in known))
        # A listing takes many requests: a part may have come behind its back, and the old ones have gone before it. One that
        # is the same twice is true: somebody took the new part away.
        whole = all(new is None or new in found | replaced or old <= found for new, old in known)
        if whole or before == (found, known):
            return sorted(found.difference(*(old for new, old in known if new is None or new in found | replaced)))
        before = found, known
    raise StorageError(f"{output.uri(folder)}: parts come and go while they are listed: try again")


def openable(output: Store, entry: Entry) -> str:
    """The path of an entry. Raises: StorageError for a pipe, or a link that leads nowhere."""
    if entry.problem:
        why = reason(OSError(entry.problem))
        raise StorageError(f"{output.uri(entry.path)}: cannot be read: {why}: mend it, or move it out of OUTPUT")
    return entry.path


def new_parts(output: Store, before: Collection[str], folder: str) -> list[str]:
    """The parts of a folder that are not among those that were there before. Raises: StorageError."""
    return [path for path in part_paths(output, folder) if path not in before]


def notes(output: Store) -> list[tuple[str, dict[str, Any]]]:
    """Path and content of each note: `new` (null where nothing is to stay), `old`, and the time `at`.

    Raises: StorageError.
    """
    found = []
    for name in filter(NOTE.fullmatch, output.names(NOTES)):
        path = f"{NOTES}/{name}"
        try:
            found.append((path, json.loads(output.read(path))))
        except FileNotFoundError:
            continue
        except ValueError:
            told = "it says which parts take the place of which"
            raise StorageError(f"{output.uri(path)}: damaged; {told}: restore it") from None
    return found


def run_ids(output: Store) -> list[str]:
    """The runs that began, oldest first."""
    return sorted(filter(RUN_ID.fullmatch, output.names("runs")))


def run_records(output: Store, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The run.json of runs; that of a run which was killed, or is at work, is left out. Raises: StorageError."""

    def read(run_id: str) -> dict[str, Any] | None:
        path = f"runs/{run_id}/run.json"
        try:
            content: dict[str, Any] = json.loads(output.read(path))
            return content
        except FileNotFoundError:
            return None
        except ValueError:
            raise StorageError(f"{output.uri(path)}: damaged; delete it") from None

    with ThreadPoolExecutor(THREADS) as pool:
        return [record for record in pool.map(read, ids) if record]


def last_records(output: Store) -> list[dict[str, Any]]:
    """The run.json of the last runs, oldest first. Raises: StorageError."""
    return run_records(output, run_ids(output)[-LAST_RUNS:])


def config_of(output: Store, record: dict[str, Any]) -> RunConfig:
    """The effective config of a run, by its run.json or its run_id alone. Raises: StorageError when it is damaged."""
    path = f"runs/{record['run_id']}/config.yaml"
    try:
        config = RunConfig.model_validate(yaml.safe_load(output.read(path)))
    except (yaml.YAMLError, ValidationError) as e:
        raise StorageError(f"{output.uri(path)}: damaged, or of another version: {reason(e)}") from None
    # As the run resolved it: a relative path is one of the folder it was started in.
    return config.model_copy(update={"input": record.get("input", config.input)})


def columns_of(table: pa.Table, names: list[str]) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def read_part(output: Store, path: str, columns: list[str] | None, absent: pa.Schema | None = None) -> pa.Table:
    """Some columns of a part, or all; those of `absent` may be missing, as in parts of older versions, and are null then.

    Raises: DamagedPart; StorageError when the store does not give it, and for damaged marks of superseded rows.
    """

    def fetch() -> pa.Table:
        with output.fs.open(output.full(path), "rb") as f, pq.ParquetFile(f, page_checksum_verification=True) as part:
            table = part.read(columns, use_threads=False)
        for name in columns or ():
            if name not in table.schema.names:
                if absent is None:
                    raise pa.ArrowInvalid(f"it has no column {name}")
                table = table.append_column(absent.field(name), pa.nulls(len(table), absent.field(name).type))
        return table.select(columns) if columns else table

    try:
        return output.ask(fetch, damage=(pa.ArrowException,))
    except FileNotFoundError:
        raise StorageError(
            f"{output.uri(path)}: went away while OUTPUT was read, by a run that merges parts: try again"
        ) from None
    except (pa.ArrowException, *STORE_FAILURES) as e:
        if is_damage(e):
            told = f"{output.uri(path)}: a damaged part ({reason(e)})"
            if path.endswith(f"/{SUPERSEDED}"):
                raise StorageError(f"{told}: {LOST_MARKS}") from None
            raise DamagedPart(f"{told}: {LOST_ROWS}") from None
        raise StorageError(f"{output.uri(path)}: cannot be read: {reason(e)}") from None


def read_parts(output: Store, paths: Sequence[str], columns: list[str]) -> pa.Table:
    """Columns of parts as one table, with the column `part` that names the file of each row. Raises: StorageError."""
    tables = list(scan(output, paths, columns))
    if not tables:
        return pa.schema([(name, pa.string()) for name in (*columns, "part")]).empty_table()
    return pa.concat_tables(tables, promote_options="default")


def scan(output: Store, paths: Sequence[str], columns: list[str], absent: pa.Schema | None = None) -> Iterator[pa.Table]:
    """As `read_parts`, some parts at a time, of at least SCANNED_AT_A_TIME rows in all.

    Args: absent: columns that a part of an older version may lack; they are null then.
    """
    tables: list[pa.Table] = []
    rows = 0
    for path, table in each_part(output, paths, columns, ahead=2 * THREADS, absent=absent):
        tables.append(table.append_column("part", pa.repeat(path, len(table))))
        rows += len(table)
        if rows >= SCANNED_AT_A_TIME:
            yield pa.concat_tables(tables, promote_options="default")
            tables, rows = [], 0
    if tables:
        yield pa.concat_tables(tables, promote_options="default")


def each_part(
    output: Store,
    paths: Iterable[str],
    columns: list[str],
    ahead: int,
    absent: pa.Schema | None = None,
    damaged: dict[str, str] | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """Parts in their order with what `read_part` gives of them, at most `ahead` of them read before they are asked for.

    Args: damaged: parts, and what is wrong with them, that are left out; one that turns out to be damaged is added. Without
        it that is an error.
    """
    reading: deque[tuple[str, Future[pa.Table]]] = deque()

    def first() -> Iterator[tuple[str, pa.Table]]:
        path, table = reading.popleft()
        try:
            yield path, table.result()
        except DamagedPart as e:
            if damaged is None:
                raise
            damaged[path] = str(e)

    with ThreadPoolExecutor(min(ahead, THREADS)) as pool:
        for path in paths:
            if path in (damaged or ()):
                continue
            reading.append((path, pool.submit(read_part, output, path, columns, absent)))
            if len(reading) > ahead:
                yield from first()
        while reading:
            yield from first()


@dataclass
class Newest:
    """For each image of a list, what the newest of its rows says; all arrays have one value an image."""

    fence: np.ndarray
    """Of the run that made the row; -1 without one."""
    same: np.ndarray
    """Whether the row's version is the one asked for."""
    there: np.ndarray
    """Whether there is any row, be it one that counts no more."""
    rows: np.ndarray
    """How many rows there are of the version asked for: more than one where a run was killed before its account."""
    seen: np.ndarray
    """The highest fence of a run that made a row of it, or was to do it again; -1 without one."""
    moved: np.ndarray
    """The place that the row's source was in (`places`), where that is another than now; -1 where it is the same."""
    places: dict[str, int]
    committed: int = 0
    """Rows there are in all, of other images too."""


def placed(table: pa.Table, ids: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """The rows of a table whose image is among `ids`, and where there it is."""
    place = pc.index_in(table["image_id"], value_set=ids)
    known = pc.is_valid(place)
    return table.filter(known), place.filter(known).to_numpy().astype(np.int64)


def wanted(table: pa.Table, ids: pa.Array, versions: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """The rows of a table that are of these images in these versions, and where they are among them."""
    table, place = placed(table, ids)
    same = pc.equal(table["version"], versions.take(pa.array(place))).to_numpy()
    return table.filter(pa.array(same)), place[same]


def newest_of(output: Store, parts: Sequence[str], inputs: pa.Table) -> Newest:
    """The newest committed row of each image whose output files are still that row's.

    Args: inputs: image_id, version, source_uri and rel_path of the images, as schema.REFERENCE has them.

    Raises: StorageError for a part that is damaged.
    """
    ids, versions = (inputs[name].combine_chunks() for name in KEYS)
    # Of so many images together they may be longer than the offsets of plain strings can say.
    uris, names = (inputs[name].cast(pa.large_string()).combine_chunks() for name in ("source_uri", "rel_path"))
    same, there, files = (np.zeros(len(ids), bool) for _ in range(3))
    marked = superseded(output, ids)
    fences, unmoved = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int32)
    newest = Newest(fences, same, there, np.zeros(len(ids), np.uint8), marked, unmoved, {})
    for chunk in scan(output, parts, [*KEYS, "fence", "output_bytes", "source_uri"]):
        newest.committed += len(chunk)
        table, place = placed(chunk, ids)
        fence = table["fence"].fill_null(0).to_numpy()
        same = pc.equal(table["version"], versions.take(pa.array(place))).to_numpy()
        order = np.argsort(fence, kind="stable")
        order = order[fence[order] >= newest.fence[place[order]]]
        # Of several rows of one image the last that is assigned stays: that of the highest fence.
        newest.there[place] = True
        np.add.at(newest.rows, place[same], 1)
        newest.fence[place[order]], newest.same[place[order]] = fence[order], same[order]
        taken = pa.array(place)
        before = moved(table["source_uri"], uris.take(taken), names.take(taken))
        newest.moved[place[order]] = numbered(before, newest.places)[order]
        files[place[order]] = pc.is_valid(table["output_bytes"]).to_numpy()[order]
    robbed = files & (marked > newest.fence)
    np.maximum(marked, newest.fence, out=newest.seen)
    newest.fence[robbed], newest.same[robbed] = -1, False
    return newest


def superseded(output: Store, ids: pa.Array, until: str | None = None) -> np.ndarray:
    """For each image the fence of the last run that was to do it again, and may have been cut off; -1 without one.

    Its files may be that run's: a row of a lower fence that names files counts no more, one that holds a latent alone is
    still whole.

    Args: until: only runs that began by then, as run ids are written (20260301T235959Z).

    Raises: StorageError, also for marks that are damaged: without them older rows would count over newer files.
    """
    last = np.full(len(ids), -1, np.int64)
    marks = [openable(output, e) for e in output.entries("runs") if e.path.endswith(f"/{SUPERSEDED}")]
    # An id that does not begin with a time, such as a test's, is as old as need be.
    marks = [path for path in marks if until is None or path.split("/")[1][: len(until)] <= until]
    for chunk in scan(output, marks, ["image_id", "fence"]):
        table, place = placed(chunk, ids)
        np.maximum.at(last, place, table["fence"].to_numpy())
    return last


def rejected_of(
    output: Store,
    parts: Sequence[str],
    ids: pa.Array,
    versions: pa.Array,
    accepted: Collection[str] = (),
    retried_class: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the failed attempts of each image's version, and what its newest reject means for a run.

    Args:
        accepted: error classes of rejects that do not wait, because the run accepts such images.
        retried_class: error class of the rejects that `retry_failed` selects; None selects all rejects.

    Returns:
        Three arrays with one value per image: the number of failed attempts; whether the newest reject waits for
        `--retry-failed`; whether there is a reject that `retry_failed` selects.
    """
    attempts, waits, retried = np.zeros(len(ids), np.int64), np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    last = np.full(len(ids), -1, np.int64)
    for chunk in scan(output, parts, [*KEYS, "fence", "transient", "attempts", "error_class"]):
        table, place = wanted(chunk, ids, versions)
        np.maximum.at(attempts, place, table["attempts"].to_numpy())
        fence, final = table["fence"].fill_null(0).to_numpy(), ~table["transient"].to_numpy()
        final &= ~pc.is_in(table["error_class"], pa.array(accepted, pa.string())).to_numpy()
        selected = np.ones(len(table), bool)
        if retried_class is not None:
            selected = pc.equal(table["error_class"], retried_class).fill_null(False).to_numpy()
        # As in newest_of; of two of one run the final one.
        order = np.lexsort((final, fence))
        order = order[fence[order] >= last[place[order]]]
        last[place[order]], waits[place[order]], retried[place[order]] = fence[order], final[order], selected[order]
    return attempts, waits, retried
