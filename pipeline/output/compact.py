"""Small parts become few: a night that brings little leaves little parts, and whoever reads OUTPUT opens them all."""

import json
import logging
from collections.abc import Iterator

import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.output.committed import COMPACTIONS, compactions, part_paths, read_part
from pipeline.schema import parquet_bytes, part_name
from pipeline.storage import Entry, Store
from pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.compact")
SMALL_BYTES = 1_000_000
ENOUGH = 64
"""Fewer small parts than these stay as they are."""
MERGED_BYTES = 8_000_000
"""Of small parts that become one."""


def compact(output: Store, parts: set[str], level: int) -> int:
    """Merge the small ones of `parts`, and finish what an earlier run was killed in; gives how many went away.

    Only for the holder of OUTPUT, with parts that lay there before its run began: nobody writes them any more. What is to
    be merged is written down, then the new part, then the old ones go; `part_paths` makes one of both whenever that stops.
    A part that cannot be read stays, with a warning.

    Args: level: of zstd.
    """
    for path, merged, old in compactions(output):
        if output.exists(merged):
            for one in old:
                if output.exists(one):
                    output.delete(one)
        output.delete(path)
    gone = 0
    for folder in ("results", "rejects"):
        there = parts & set(part_paths(output, folder))
        small = [e for e in output.entries(folder) if e.path in there and e.size < SMALL_BYTES]
        for group in groups(small) if len(small) >= ENOUGH else ():
            try:
                gone += merge(output, folder, group, level)
            except (StorageError, *STORE_FAILURES) as e:
                log.warning("%d small parts of %s stay: %s", len(group), folder, reason(e))
    return gone


def groups(entries: list[Entry]) -> Iterator[list[str]]:
    """Paths in their order, of about MERGED_BYTES together."""
    group: list[str] = []
    size = 0
    for entry in entries:
        group.append(entry.path)
        size += entry.size
        if size >= MERGED_BYTES:
            yield group
            group, size = [], 0
    if len(group) > 1:
        yield group


def merge(output: Store, folder: str, old: list[str], level: int) -> int:
    """Several parts become one, by the steps that `compact` names."""
    table = pa.concat_tables([read_part(output, path, None) for path in old], promote_options="default")
    name = part_name(table)
    merged = f"{folder}/{name}"
    output.write(f"{COMPACTIONS}/{name}.json", json.dumps({"part": merged, "of": old}).encode(), durable=True)
    output.write(merged, parquet_bytes(table, level), durable=True)
    for path in old:
        output.delete(path)
    return len(old)
