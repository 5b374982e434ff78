"""Merge small parts. Nights with few new images leave small parts, and every reader of OUTPUT has to open all of them."""

import logging
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.output.part_replacement import replace_parts
from imagemill.pipeline.output.parts import list_new_parts, read_part
from imagemill.pipeline.schema import concat_parts
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.compact")
SMALL_BYTES = 1_000_000
MIN_SMALL_PARTS = 64
"""Fewer small parts are not merged."""
MERGED_BYTES = 8_000_000
"""Total size of the small parts that are merged into one."""
SMALL_NEW_BYTES = 300_000
"""Parts of a run below this size are merged at its end: the footer and page headers of a part take 6 kB, which is 2 %."""
NEW_LEVEL = 16
"""Lowest zstd level of parts that are merged at the end of a run.

Level 16 makes latents up to 7 % smaller than level 9, in four times the time, because from this level on, zstd splits its
blocks where the statistics change. Workers, and `compact`, which may have to rewrite a gigabyte, keep the level of the run.
"""


def compact(output: Store, parts: set[str], level: int, check: Callable[[], None]) -> int:
    """Merge small parts. A failure is only logged, because all rows are committed already.

    Only the holder of the lease may call this, after `finish_interrupted_merges`.

    Args:
        output: the OUTPUT.
        parts: paths of parts that existed before the run began, so nobody writes them any more.
        level: zstd compression level.
        check: raises OutputHeld if another run took the lease.

    Returns:
        The number of parts that were merged into others.
    """
    merged = 0
    try:
        for folder in ("results", "rejects"):
            sizes = {e.path: e.size for e in output.entries(folder) if e.path in parts and e.size < SMALL_BYTES}
            for group in group_by_size(list(sizes), sizes) if len(sizes) >= MIN_SMALL_PARTS else ():
                check()
                merged += merge_parts(output, folder, group, level)
    except store_failures(OutputHeld, StorageError, pa.ArrowException) as e:
        log.warning("%s: small parts were not merged: %s", output.url, reason(e))
    if merged:
        log.info("%d small parts merged", merged)
    return merged


def merge_new_parts(output: Store, before: set[str], max_rows: int, level: int, check: Callable[[], None]) -> int:
    """Merge small parts of `results/` that a run wrote, when its workers have ended. A failure is only logged.

    A run over few images has a part for each of its blocks, and the footer and page headers of such a part take up to half
    as many bytes as its latents.

    Args:
        output: the OUTPUT.
        before: paths of the parts that existed before the run began. They stay as they are.
        max_rows: maximum number of rows of a merged part.
        level: zstd compression level of the run.
        check: raises OutputHeld if another run took the lease.

    Returns:
        The number of parts that were merged into others.
    """
    merged = 0
    try:
        sizes = {entry.path: entry.size for entry in output.entries("results")}
        small = [path for path in list_new_parts(output, before, "results") if sizes.get(path, 0) < SMALL_NEW_BYTES]
        rows = {path: len(read_part(output, path, ["image_id"])) for path in small} if len(small) > 1 else {}
        for group in group_by_rows(rows, sizes, max_rows):
            check()
            merged += merge_parts(output, "results", group, max(level, NEW_LEVEL))
    except store_failures(OutputHeld, StorageError, pa.ArrowException) as e:
        log.warning("%s: parts of this run were not merged: %s", output.url, reason(e))
    return merged


def group_by_rows(rows: dict[str, int], sizes: dict[str, int], max_rows: int) -> Iterator[list[str]]:
    """Yield paths of parts in groups of at most `max_rows` rows and about MERGED_BYTES, in order.

    Args:
        rows: path → rows of a part.
        sizes: path → bytes of a part.
        max_rows: maximum number of rows in a group of several parts.
    """
    group: list[str] = []
    for path in rows:
        if group and (sum(rows[p] for p in group) + rows[path] > max_rows or sum(sizes[p] for p in group) >= MERGED_BYTES):
            yield group
            group = []
        group.append(path)
    if group:
        yield group


def group_by_size(paths: Sequence[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield paths of parts in groups of about MERGED_BYTES, in order.

    Args:
        paths: paths of parts.
        sizes: path → bytes of a part.
    """
    group: list[str] = []
    size = 0
    for path in paths:
        group.append(path)
        size += sizes.get(path, 0)
        if size >= MERGED_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def merge_parts(output: Store, folder: str, paths: list[str], level: int) -> int:
    """Merge parts into one; return the number of merged parts. Parts that cannot be read stay as they are."""
    tables = {}
    for path in paths:
        try:
            tables[path] = read_part(output, path, None)
        except StorageError as e:
            log.warning("%s", e)
    if len(tables) < 2:
        return 0
    replace_parts(output, folder, set(tables), concat_parts(list(tables.values())), level)
    return len(tables)
