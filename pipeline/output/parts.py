"""Parts: the Parquet files of an OUTPUT. List the committed parts, and read their columns."""

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
from imagemill.pipeline.store_failures import is_damage, reason, store_failures
from imagemill.pipeline.store_listing import Entry

KEYS = ["image_id", "version"]
SUPERSEDED = "superseded.parquet"
"""File in runs/ID: the images that the run processes again, and whose older output files it may overwrite."""
LOST_ROWS = "Move it out of OUTPUT. The next run processes its images again, if INPUT still has them"
LOST_MARKS = (
    "It lists the older rows whose files were overwritten. Restore it. If you cannot, delete it, run `imagemill verify` "
    "and move the parts with the rows that verify names out of OUTPUT. The next run processes those images again"
)
NOTES_FOLDER = "runs/replaced"
"""Folder of notes, each of which says which part replaces which parts (part_replacement.py)."""
NOTE_NAME = re.compile(r"[0-9a-f]{32}\.json")
SCANNED_ROWS = 2_000_000
"""Rows per table of `scan_parts`: ten million committed rows must fit into memory next to a listing."""
THREADS = 16
MAX_LISTINGS = 3
"""Times that a folder is listed while its parts are being replaced."""


def list_parts(output: Store, folder: str) -> list[str]:
    """List the committed parts of `results` or `rejects`. Raises the errors of `list_part_sizes`."""
    return list(list_part_sizes(output, folder))


def list_part_sizes(output: Store, folder: str) -> dict[str, int]:
    """List the committed parts of `results` or `rejects`, sorted, and the bytes of each.

    While parts are being replaced, either the old parts or the new one are listed, never both.

    Raises:
        StorageError: when a part is not a file, or parts are replaced faster than they can be listed.
    """
    previous = None
    for _ in range(MAX_LISTINGS):
        entries = (e for e in output.entries(folder) if e.path.endswith(".parquet") and "/." not in f"/{e.path}")
        sizes = {check_readable(output, entry): entry.size for entry in entries}
        paths = set(sizes)
        notes = [(note["new"], set(note["old"])) for _, note in read_replacement_notes(output)]
        notes = [(new, old) for new, old in notes if any(path.startswith(f"{folder}/") for path in old)]
        replaced = set().union(*(old for _, old in notes))
        # A listing takes many requests: a new part may appear after the listing passed its name, and the old parts may be
        # deleted before the listing reaches theirs. Then the listing is repeated. If two listings are equal, they are
        # complete: the new part was removed by someone else.
        is_complete = all(new is None or new in paths | replaced or old <= paths for new, old in notes)
        if is_complete or previous == (paths, notes):
            committed = paths.difference(*(old for new, old in notes if new is None or new in paths | replaced))
            return {path: sizes[path] for path in sorted(committed)}
        previous = paths, notes
    raise StorageError(f"{output.uri(folder)}: parts change while they are listed. Try again")


def check_readable(output: Store, entry: Entry) -> str:
    """Return the path of an entry. Raise StorageError for a pipe or a broken link."""
    if entry.problem:
        why = reason(OSError(entry.problem))
        raise StorageError(f"{output.uri(entry.path)}: cannot be read: {why}. Repair it, or move it out of OUTPUT")
    return entry.path


def list_new_parts(output: Store, before: Collection[str], folder: str) -> list[str]:
    """List the parts of a folder that are not in `before`. Raise StorageError if they cannot be listed."""
    return [path for path in list_parts(output, folder) if path not in before]


def read_replacement_notes(output: Store) -> list[tuple[str, dict[str, Any]]]:
    """Read the notes about parts that replace other parts.

    Returns:
        Path and content of each note: `new` (path of the new part, or null), `old` (paths of the replaced parts) and `at`
        (Unix time).

    Raises:
        StorageError: when a note is damaged.
    """
    contents = []
    for name in filter(NOTE_NAME.fullmatch, output.names(NOTES_FOLDER)):
        path = f"{NOTES_FOLDER}/{name}"
        try:
            contents.append((path, json.loads(output.read(path))))
        except FileNotFoundError:
            continue
        except ValueError:
            raise StorageError(f"{output.uri(path)}: damaged. It says which part replaces which parts: restore it") from None
    return contents


def columns_as_lists(table: pa.Table, names: list[str]) -> list[list[Any]]:
    """Return columns of a table as Python lists."""
    return [table[name].to_pylist() for name in names]


def read_part(output: Store, path: str, columns: list[str] | None, absent: pa.Schema | None = None) -> pa.Table:
    """Read a part.

    Args:
        output: the OUTPUT.
        path: path of the part.
        columns: the columns to read; None for all.
        absent: columns that parts of older versions may lack. They are null then.

    Raises:
        DamagedPart: when the part is damaged.
        StorageError: when the store cannot deliver the part, or a list of superseded images is damaged.
    """

    def fetch() -> pa.Table:
        with output.open(path) as f, pq.ParquetFile(f, page_checksum_verification=True) as part:
            table = part.read(columns, use_threads=False)
        for name in columns or ():
            if name not in table.schema.names:
                if absent is None:
                    raise pa.ArrowInvalid(f"the part has no column {name}")
                table = table.append_column(absent.field(name), pa.nulls(len(table), absent.field(name).type))
        return table.select(columns) if columns else table

    try:
        return output.ask(fetch, damage=(pa.ArrowException,))
    except FileNotFoundError:
        raise StorageError(
            f"{output.uri(path)}: a run that merges parts deleted it while OUTPUT was read. Try again"
        ) from None
    except store_failures(pa.ArrowException) as e:
        if is_damage(e):
            if path.endswith(f"/{SUPERSEDED}"):
                raise StorageError(f"{output.uri(path)}: damaged ({reason(e)}). {LOST_MARKS}") from None
            raise DamagedPart(f"{output.uri(path)}: a damaged part ({reason(e)}). {LOST_ROWS}") from None
        raise StorageError(f"{output.uri(path)}: cannot be read: {reason(e)}") from None


def read_parts(output: Store, paths: Sequence[str], columns: list[str]) -> pa.Table:
    """Read columns of parts into one table, with a column `part`: the path of the part of each row."""
    tables = list(scan_parts(output, paths, columns))
    if not tables:
        return pa.schema([(name, pa.string()) for name in (*columns, "part")]).empty_table()
    return pa.concat_tables(tables, promote_options="default")


def scan_parts(
    output: Store, paths: Sequence[str], columns: list[str], absent: pa.Schema | None = None
) -> Iterator[pa.Table]:
    """Yield tables like that of `read_parts`, each of several parts with SCANNED_ROWS rows or more.

    Args:
        output: the OUTPUT.
        paths: paths of the parts.
        columns: the columns to read.
        absent: columns that parts of older versions may lack. They are null then.
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
    """Yield the path and the table of each part, in order.

    Args:
        output: the OUTPUT.
        paths: paths of the parts.
        columns: the columns to read.
        ahead: parts that are read before they are needed.
        absent: columns that parts of older versions may lack. They are null then.
        damaged: path and problem of damaged parts, which are left out. New ones are added. If None, a damaged part raises.

    Raises:
        DamagedPart: when a part is damaged and `damaged` is None.
        StorageError: when the store cannot deliver a part.
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
