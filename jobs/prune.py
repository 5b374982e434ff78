"""Remove images from an OUTPUT: those that left the input, those of a deletion request, or older versions."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.jobs.console import number, one_line, print_text
from imagemill.jobs.outputs import check_output
from imagemill.jobs.removed import list_sources
from imagemill.pipeline.errors import ConfigError, StorageError, join_first
from imagemill.pipeline.output.ownership import ACCOUNTED
from imagemill.pipeline.output.prune import Kind, prune
from imagemill.pipeline.output.prune_selection import Selection, select_images, select_old_versions
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.reports.page import format_bytes
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.selection import WILDCARDS, compile_pattern
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.prune")
IMAGE_ID = re.compile("[0-9a-f]{32}")
EXAMPLES = 10
"""Paths that are printed."""
DESCRIPTIONS: dict[Kind, str] = {
    "gone": "that no input holds any more",
    "old versions": "with rows or rejects that newer ones replaced",
    "request": "that match --id or --path",
}
COPIES = (
    "Exports, maps, decoded images and other copies outside of OUTPUT stay, and so do older versions of objects in a bucket "
    "with versioning. Delete them yourself"
)
IDS_STAY = (
    "a pattern finds only images with rows or rejects. Lists of earlier prunes and runs may hold the ids of other images. "
    "Name each of them with --path to remove its id"
)
OTHER_TRACES = (
    "All reports and shard indexes go, because they may name such images, and so do their ids in the lists of earlier prunes"
)
WOULD_COUNT = "So images that still exist would count as gone."
NAME_THEM = "To remove images in any case, name them with --path"


def show_prune(
    output: Store, ids: Sequence[str] = (), paths: Sequence[str] = (), old_versions: bool = False, yes: bool = False
) -> None:
    """Print what a prune removes and, with `yes`, remove it.

    Args:
        output: the OUTPUT.
        ids: image ids to remove.
        paths: paths or patterns of images to remove, as in the column rel_path.
        old_versions: remove rows and rejects that newer ones replaced, instead of images.
        yes: remove. Without it, nothing changes.

    Raises:
        ConfigError: when an id is malformed, or the options contradict each other.
        StorageError: when OUTPUT cannot be read or written, or an input of its runs cannot be listed.
        OutputHeld: when a run holds OUTPUT.
    """
    if old_versions and (ids or paths):
        raise ConfigError("--old-versions: cannot be combined with --id or --path. Prune twice")
    for named in ids:
        if not IMAGE_ID.fullmatch(named):
            raise ConfigError(f"--id {named}: must have 32 hexadecimal digits, as in the column image_id")
    check_output(output)
    kind: Kind = "old versions" if old_versions else "request" if ids or paths else "gone"

    def select() -> Selection:
        selection = select_rows(output, kind, ids, paths)
        show_selection(selection, kind)
        return selection

    try:
        # With `yes`, the inputs are listed under the lease: no run can add rows of images that are newer than the list.
        record = prune(output, select, kind) if yes else None
        if not yes and len(select().pending):
            print_text("nothing was removed. Add --yes to remove")
    except store_failures() as e:
        raise StorageError(f"{output.url}: {reason(e)}") from None
    if record:
        counts = [number(record[f"removed_{noun}s"], noun) for noun in ("row", "reject")]
        counts += [number(record[f"{noun}s"], noun) for noun in ("file", "report")]
        print_text(f"removed: {', '.join(counts)}")
        if record["changed_files"]:
            log.warning("%s changed since a run wrote them, and stay", number(record["changed_files"], "file"))


def select_rows(output: Store, kind: Kind, ids: Sequence[str], paths: Sequence[str]) -> Selection:
    """Select what a prune removes.

    Raises:
        StorageError: when OUTPUT cannot be read, or images count as gone only because an input is empty, not known,
            or cannot be listed.
    """
    if kind == "old versions":
        return select_old_versions(output)
    if kind == "request":
        # A pattern may also be the name of an image.
        named_ids = sorted({*ids, *map(image_id, paths)})
        selection = replace(select_images(output, match_request(ids, paths)), named_ids=named_ids)
        warn_of_request(output, selection, paths)
        return selection
    sources = list_sources(output)
    problems = [*sources.problems, *(f"input {url}: holds no image" for url in sources.empty_inputs)]
    if problems:
        raise StorageError(f"{join_first(problems)}. {WOULD_COUNT} Is a disk not mounted? {NAME_THEM}")
    missing_configs: dict[str, None] = {}

    def is_gone(table: pa.Table) -> pa.Array:
        is_removed = sources.removed(table, output.url)
        missing_configs.update(dict.fromkeys(sources.missing_configs(table, is_removed)))
        return is_removed.fill_null(False)

    selection = select_images(output, is_gone)
    if missing_configs:
        raise StorageError(f"{output.url}: {join_first(list(missing_configs))}. {WOULD_COUNT} {NAME_THEM}")
    return selection


def match_request(ids: Sequence[str], paths: Sequence[str]) -> Callable[[pa.Table], pa.Array]:
    """Return a function that returns for each row of a table whether a deletion request names its image.

    Args:
        ids: values of image_id.
        paths: values of rel_path, or patterns.
    """
    exact, wanted = set(paths), set(ids)
    patterns = list(filter(None, map(compile_path, paths)))

    def is_named(table: pa.Table) -> pa.Array:
        rows = zip(table["image_id"].to_pylist(), table["rel_path"].to_pylist(), strict=True)
        return pa.array(
            (
                row_id in wanted or path in exact or any(pattern.search(path) for pattern in patterns)
                for row_id, path in rows
            ),
            pa.bool_(),
        )

    return is_named


def compile_path(path: str) -> re.Pattern[str] | None:
    """Return the regular expression of a --path, a pattern like those of --include; None if it can only name one image.

    Only a path with a wildcard, or with a slash at its start or end, is a pattern: as a pattern, a.jpg would match b/a.jpg.
    """
    if not WILDCARDS.search(path) and path == path.strip("/"):
        return None
    with suppress(ValueError):
        return compile_pattern(path)
    return None


def show_selection(selection: Selection, kind: Kind) -> None:
    """Print the counts and the first paths of what a prune removes."""
    rows = selection.rows
    if not len(rows):
        if kind == "request":
            print_text(f"no rows or rejects of images {DESCRIPTIONS[kind]}. {OTHER_TRACES}")
        else:
            print_text(f"nothing to remove: there are no images {DESCRIPTIONS[kind]}")
        return
    paths = sorted(set(rows["rel_path"].to_pylist()))
    row_count = int(pc.sum(pc.equal(rows["folder"], "results")).as_py())
    with_files = rows.filter(pc.is_valid(rows["output_uri"])).group_by("output_uri").aggregate([("output_bytes", "max")])
    file_bytes = pc.sum(with_files["output_bytes_max"]).as_py() or 0
    counts = f"{number(row_count, 'row')} and {number(len(rows) - row_count, 'reject')}, about "
    counts += f"{format_bytes(selection.part_bytes)}; up to {number(len(with_files), 'file')}, {format_bytes(file_bytes)}"
    print_text(f"{number(len(paths), 'image')} {DESCRIPTIONS[kind]}: {counts}")
    for path in paths[:EXAMPLES]:
        print_text(f"  {one_line(path)}")
    if len(paths) > EXAMPLES:
        print_text(f"  and {len(paths) - EXAMPLES:,} more")


def warn_of_request(output: Store, selection: Selection, paths: Sequence[str]) -> None:
    """Log what a deletion request does not reach: sources, copies, files of interrupted runs, and ids without rows."""
    if len(selection.rows):
        is_gone = list_sources(output).removed(selection.rows, output.url)
        remaining = selection.rows.filter(pc.invert(is_gone.fill_null(False)))
        if count := len(remaining["image_id"].unique()):
            problem = "still in an input, or an input cannot be listed"
            log.warning("%s: %s. Delete the sources, or the next run processes them again", number(count, "image"), problem)
    if patterns := list(filter(compile_path, paths)):
        log.warning("--path %s: %s", patterns[0], IDS_STAY)
    if (records := read_last_records(output)) and records[-1].get("exit_code") not in ACCOUNTED:
        log.warning("the last run did not finish, and may have left images without rows. Run it again before you prune")
    log.warning("%s", COPIES)
