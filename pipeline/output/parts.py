"""The parts of an OUTPUT: which are committed, and their columns."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.errors import DamagedPart, StorageError
from imagemill.pipeline.lookahead import map_ahead
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
NOTES_FOLDER = "runs/replaced"
"""Which parts take, or are to take, the place of which (part_replacement.py)."""
NOTE_NAME = re.compile(r"[0-9a-f]{32}\.json")
SCANNED_ROWS = 2_000_000
THREADS = 16
MAX_LISTINGS = 3


def list_parts(output: Store, folder: str) -> list[str]:
    """The committed parts of `results` or `rejects`; of parts that are being replaced the new one, once it is there.

    Raises: StorageError, also for a part that is no file, and when parts are replaced faster than they are listed.
    """
    before = None
    for _ in range(MAX_LISTINGS):
        there = (e for e in output.entries(folder) if e.path.endswith(".parquet") and "/." not in f"/{e.path}")
        found = {check_readable(output, entry) for entry in there}
        known = [(note["new"], set(note["old"])) for _, note in read_replacement_notes(output)]
        known = [(new, old) for new, old in known if any(path.startswith(f"{folder}/") for path in old)]
        replaced = set().union(*(old for _, old in known))
        # A listing takes many requests: a part may have come behind its back, and the old ones have gone before it. One that
        # is the same twice is true: somebody took the new part away.
        whole = all(new is None or new in found | replaced or old <= found for new, old in known)
        if whole or before == (found, known):
            return sorted(found.difference(*(old for new, old in known if new is None or new in found | replaced)))
        before = found, known
    raise StorageError(f"{output.uri(folder)}: parts come and go while they are listed: try again")


def check_readable(output: Store, entry: Entry) -> str:
    """The path of an entry. Raises: StorageError for a pipe, or a link that leads nowhere."""
    if entry.problem:
        why = reason(OSError(entry.problem))
        raise StorageError(f"{output.uri(entry.path)}: cannot be read: {why}: mend it, or move it out of OUTPUT")
    return entry.path


def list_new_parts(output: Store, before: Collection[str], folder: str) -> list[str]:
    """The parts of a folder that are not among those that were there before. Raises: StorageError."""
    return [path for path in list_parts(output, folder) if path not in before]


def read_replacement_notes(output: Store) -> list[tuple[str, dict[str, Any]]]:
    """Path and content of each note: `new` (null where nothing is to stay), `old`, and the time `at`.

    Raises: StorageError.
    """
    found = []
    for name in filter(NOTE_NAME.fullmatch, output.names(NOTES_FOLDER)):
        path = f"{NOTES_FOLDER}/{name}"
        try:
            found.append((path, json.loads(output.read(path))))
        except FileNotFoundError:
            continue
        except ValueError:
            told = "it says which parts take the place of which"
            raise StorageError(f"{output.uri(path)}: damaged; {told}: restore it") from None
    return found


def columns_as_lists(table: pa.Table, names: list[str]) -> list[list[Any]]:
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
    tables = list(scan_parts(output, paths, columns))
    if not tables:
        return pa.schema([(name, pa.string()) for name in (*columns, "part")]).empty_table()
    return pa.concat_tables(tables, promote_options="default")


def scan_parts(
    output: Store, paths: Sequence[str], columns: list[str], absent: pa.Schema | None = None
) -> Iterator[pa.Table]:
    """As `read_parts`, some parts at a time, of at least SCANNED_AT_A_TIME rows in all.

    Args: absent: columns that a part of an older version may lack; they are null then.
    """
    tables: list[pa.Table] = []
    rows = 0
    for path, table in iterate_parts(output, paths, columns, ahead=2 * THREADS, absent=absent):
        tables.append(table.append_column("part", pa.repeat(path, len(table))))
        rows += len(table)
        if rows >= SCANNED_ROWS:
            yield pa.concat_tables(tables, promote_options="default")
            tables, rows = [], 0
    if tables:
        yield pa.concat_tables(tables, promote_options="default")


def iterate_parts(
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

    def read(path: str) -> tuple[str, pa.Table | DamagedPart]:
        try:
            return path, read_part(output, path, columns, absent)
        except DamagedPart as e:
            if damaged is None:
                raise
            return path, e

    with ThreadPoolExecutor(min(ahead, THREADS)) as pool:
        intact = (path for path in paths if path not in (damaged or ()))
        for path, table in map_ahead(lambda path: pool.submit(read, path), intact, ahead):
            if not isinstance(table, DamagedPart):
                yield path, table
            elif damaged is not None:
                damaged[path] = str(table)
