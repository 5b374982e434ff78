"""Remove images from an OUTPUT: those that left the input, those of a deletion request, or older versions."""

import logging
import re
from collections.abc import Sequence
from fnmatch import translate
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.jobs.console import number, one_line, print_text
from imagemill.jobs.outputs import check_output
from imagemill.jobs.removed import Sources, list_sources
from imagemill.pipeline.errors import ConfigError, StorageError, join_first
from imagemill.pipeline.output.ownership import ACCOUNTED
from imagemill.pipeline.output.prune import Kind, prune
from imagemill.pipeline.output.prune_selection import Selection, select_images, select_old_versions
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.reports.page import format_bytes
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
    for image_id in ids:
        if not IMAGE_ID.fullmatch(image_id):
            raise ConfigError(f"--id {image_id}: must have 32 hexadecimal digits, as in the column image_id")
    check_output(output)
    kind: Kind = "old versions" if old_versions else "request" if ids or paths else "gone"

    def select() -> Selection:
        selection = select_rows(output, kind, ids, paths)
        show_selection(selection, kind)
        return selection

    try:
        # With `yes`, the inputs are listed under the lease: no run can add rows of images that are newer than the list.
        record = prune(output, select, kind) if yes else None
        if not yes and len(select().rows):
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
        selection = select_images(output, partial(is_named, ids, paths))
        if len(selection.rows):
            warn_of_request(output, selection, list_sources(output))
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


def is_named(ids: Sequence[str], paths: Sequence[str], table: pa.Table) -> pa.Array:
    """Return for each row of a table whether its image_id is one of `ids`, or its rel_path one of `paths` or patterns."""
    patterns = [re.compile(translate(path)) for path in paths]
    exact, wanted = set(paths), set(ids)
    return pa.array(
        [
            image_id in wanted or path in exact or any(pattern.match(path) for pattern in patterns)
            for image_id, path in zip(table["image_id"].to_pylist(), table["rel_path"].to_pylist(), strict=True)
        ],
        pa.bool_(),
    )


def show_selection(selection: Selection, kind: Kind) -> None:
    """Print the counts and the first paths of what a prune removes."""
    rows = selection.rows
    if not len(rows):
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


def warn_of_request(output: Store, selection: Selection, sources: Sources) -> None:
    """Log what a deletion request does not reach: sources, copies, and files of interrupted runs."""
    is_gone = sources.removed(selection.rows, output.url)
    remaining = selection.rows.filter(pc.invert(is_gone.fill_null(False)))
    if count := len(remaining["image_id"].unique()):
        problem = "still in an input, or an input cannot be listed"
        log.warning("%s: %s. Delete the sources, or the next run processes them again", number(count, "image"), problem)
    if (records := read_last_records(output)) and records[-1].get("exit_code") not in ACCOUNTED:
        log.warning("the last run did not finish, and may have left images without rows. Run it again before you prune")
    log.warning("%s", COPIES)
