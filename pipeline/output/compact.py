"""Small parts become few: a night that brings little leaves little parts, and whoever reads OUTPUT opens them all."""

import logging
from collections.abc import Callable, Iterator

import pyarrow as pa

from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.output.part_replacement import replace_parts
from imagemill.pipeline.output.parts import read_part
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason
from imagemill.pipeline.store_listing import Entry

log = logging.getLogger("imagemill.compact")
SMALL_BYTES = 1_000_000
MIN_SMALL_PARTS = 64
"""Fewer small parts than these stay as they are."""
MERGED_BYTES = 8_000_000
"""Of small parts that become one."""


def compact(output: Store, parts: set[str], level: int, check: Callable[[], None]) -> int:
    """Merge the small ones of `parts`; gives how many went away. What fails is a warning: all rows are committed.

    Only for the holder of OUTPUT, once it is settled, with parts that lay there before its run began: nobody writes them
    any more.

    Args: level: of zstd. check: raises OutputHeld when another run has OUTPUT now, whose parts these are then.
    """
    gone = 0
    try:
        for folder in ("results", "rejects"):
            small = [e for e in output.entries(folder) if e.path in parts and e.size < SMALL_BYTES]
            for group in group_by_size(small) if len(small) >= MIN_SMALL_PARTS else ():
                check()
                gone += merge_parts(output, folder, group, level)
    except (OutputHeld, StorageError, pa.ArrowException, *STORE_FAILURES) as e:
        log.warning("small parts of %s stay for now: %s", output.url, reason(e))
    if gone:
        log.info("%d small parts merged", gone)
    return gone


def group_by_size(entries: list[Entry]) -> Iterator[list[str]]:
    """Paths in their order, of about MERGED_BYTES together."""
    group: list[str] = []
    size = 0
    for entry in entries:
        group.append(entry.path)
        size += entry.size
        if size >= MERGED_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def merge_parts(output: Store, folder: str, paths: list[str], level: int) -> int:
    """Several parts become one, without those that cannot be read."""
    tables = {}
    for path in paths:
        try:
            tables[path] = read_part(output, path, None)
        except StorageError as e:
            log.warning("%s", e)
    if len(tables) < 2:
        return 0
    table = pa.concat_tables(tables.values(), promote_options="default")
    replace_parts(output, folder, set(tables), table, level)
    return len(tables)
