"""Remove rows, rejects and output files of some images from an OUTPUT, so that a kill at any moment leaves it consistent.

A prune first stores what it will remove (`pending.parquet`). Then it hides the images, replaces their parts, and deletes the
files that no row names any more. The next run or prune finishes a prune that was killed.
"""

import hashlib
import json
import logging
import posixpath
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output import obsolete_rejects
from imagemill.pipeline.output.compact import group_by_size
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.output_names import stays_inside
from imagemill.pipeline.output.ownership import is_output
from imagemill.pipeline.output.part_replacement import finish_interrupted_merges, replace_parts
from imagemill.pipeline.output.parts import SUPERSEDED, iterate_parts, list_parts, read_part, read_replacement_notes
from imagemill.pipeline.output.prune_selection import PENDING_SCHEMA, Selection, row_keys
from imagemill.pipeline.output.run_history import PRUNED, PRUNED_RECORD, RUN_ID, read_last_records
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import concat_parts, new_run_id
from imagemill.pipeline.sources.shard_index import delete_indexes
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.prune")
Kind = Literal["gone", "old versions", "request"]
"""Images that left all inputs; rows that a newer row replaced; or images that somebody asked to delete."""
PENDING, REMOVED = "pending.parquet", "removed.parquet"
IMAGES = "images/"
"""Start of the names of all output files."""
LEVEL = 9
"""zstd level of rewritten parts."""
PARTS_AHEAD = 16
THREADS = 16


def prune(output: Store, select: Callable[[], Selection], kind: Kind) -> dict[str, Any] | None:
    """Remove what `select` returns, under the lease of OUTPUT.

    Args:
        output: the OUTPUT.
        select: returns what to remove. It is called under the lease, so that no run adds rows meanwhile.
        kind: why the images are removed. A request leaves no names of images behind.

    Returns:
        The record of the prune; None if there was nothing to remove.

    Raises:
        ConfigError: when no run wrote into OUTPUT.
        OutputHeld: when a run holds OUTPUT.
        StorageError: when OUTPUT cannot be read or written. The next run or prune finishes the work.
    """
    # A lease makes a folder an output, into which runs may write.
    if not is_output(output):
        raise ConfigError(f"{output.url}: is not an output of imagemill: no run wrote into it. Give the OUTPUT of a run")
    with Lease(output) as lease:
        finish_interrupted_merges(output)
        finish_interrupted_prunes(output, lease.check_held)
        selection = select()
        if not len(selection.rows):
            return None
        tokens = [int(record.get("fence", 0)) for record in read_last_records(output)]
        lease.raise_above(max([*tokens, int(pc.max(selection.rows["fence"]).as_py())]))
        folder = f"{PRUNED}/{new_run_id()}"
        removed_rows = int(pc.sum(pc.equal(selection.rows["folder"], "results")).as_py())
        record = {
            "kind": kind,
            "fence": lease.fencing_token,
            "rows": selection.total_rows - removed_rows,
            "images": len(selection.rows["image_id"].unique()),
            "removed_rows": removed_rows,
            "removed_rejects": len(selection.rows) - removed_rows,
            "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # Without pending.parquet, nothing was removed, and the record is deleted again.
        output.write(f"{folder}/{PRUNED_RECORD}", json.dumps(record, indent=2).encode(), durable=True)
        output.write(f"{folder}/{PENDING}", parquet_bytes(selection.rows, LEVEL), durable=True)
        return finish_prune(output, folder, lease.check_held)


def finish_interrupted_prunes(output: Store, check: Callable[[], None]) -> None:
    """Finish prunes that were killed. Only the holder of the lease may call this, after `finish_interrupted_merges`.

    Args:
        output: the OUTPUT.
        check: raises OutputHeld if another run took the lease.
    """
    paths = {entry.path for entry in output.entries(PRUNED)}
    for folder in sorted({posixpath.dirname(path) for path in paths}):
        if f"{folder}/{PENDING}" in paths:
            log.info("%s: finishing a prune that was interrupted", output.url)
            finish_prune(output, folder, check)
        elif f"{folder}/{PRUNED_RECORD}" in paths and f"{folder}/{REMOVED}" not in paths:
            output.delete(f"{folder}/{PRUNED_RECORD}")


def finish_prune(output: Store, folder: str, check: Callable[[], None]) -> dict[str, Any]:
    """Remove what pending.parquet names, as far as it still exists, and return the record of the prune."""
    record: dict[str, Any] = json.loads(output.read(f"{folder}/{PRUNED_RECORD}"))
    if "ended_at" not in record:
        remove_pending(output, folder, record, check)
    for name in (SUPERSEDED, PENDING):
        if output.exists(f"{folder}/{name}"):
            output.delete(f"{folder}/{name}")
    return record


def remove_pending(output: Store, folder: str, record: dict[str, Any], check: Callable[[], None]) -> None:
    """Remove what pending.parquet names, and complete the record of the prune."""
    pending = read_part(output, f"{folder}/{PENDING}", PENDING_SCHEMA.names)
    is_whole = record["kind"] != "old versions"
    ids = pending["image_id"].unique()
    if is_whole:
        # The parts are replaced one after the other. Until then, no older row may become the newest one of its image.
        marks = pa.table({"image_id": ids, "fence": pa.array([record["fence"]] * len(ids), pa.int64())})
        output.write(f"{folder}/{SUPERSEDED}", parquet_bytes(marks, LEVEL), durable=True)
    remove_rows(output, pending, check)
    check()
    record |= delete_files(output, pending)
    record["reports"] = delete_reports(output, pending, record["kind"])
    if record["kind"] == "request":
        forget_images(output, ids, folder)
        delete_indexes(output)
    output.write(f"{folder}/{REMOVED}", parquet_bytes(list_of_removed(pending, record["kind"], folder), LEVEL))
    record["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    output.write(f"{folder}/{PRUNED_RECORD}", json.dumps(record, indent=2).encode(), durable=True)


def remove_rows(output: Store, pending: pa.Table, check: Callable[[], None]) -> None:
    """Replace the parts that have rows of `pending` by parts without these rows, several small parts at a time."""
    notes = read_replacement_notes(output)
    for folder in ("results", "rejects"):
        keys = row_keys(pending.filter(pc.equal(pending["folder"], folder))).combine_chunks()
        if not len(keys):
            continue
        sizes = {entry.path: entry.size for entry in output.entries(folder)}
        affected = []
        for path, table in iterate_parts(output, list_parts(output, folder), ["image_id", "version", "fence"], PARTS_AHEAD):
            if pc.any(pc.is_in(row_keys(table), value_set=keys)).as_py():
                affected.append(path)
        for group in group_by_size(affected, sizes):
            check()
            tables = [read_part(output, path, None) for path in group]
            rest = [table.filter(pc.invert(pc.is_in(row_keys(table), value_set=keys))) for table in tables]
            replace_parts(output, folder, set(group), concat_parts(rest), LEVEL, notes)


def delete_files(output: Store, pending: pa.Table) -> dict[str, int]:
    """Delete the output files of removed rows. Files that a remaining row names, or that were changed since, stay.

    Returns:
        `files`, the number of files that the prune deletes, `bytes`, their size according to the rows, and `changed_files`.
    """
    rows = pending.filter(pc.is_valid(pending["output_uri"]))
    names = rows["output_uri"].unique()
    in_use: set[str] = set()
    if len(names):
        for _, table in iterate_parts(output, list_parts(output, "results"), ["output_uri"], PARTS_AHEAD):
            in_use.update(table.filter(pc.is_in(table["output_uri"], value_set=names))["output_uri"].to_pylist())
    digests: dict[str, set[str | None]] = {}
    sizes: dict[str, int] = {}
    for row in rows.select(["output_uri", "output_sha256", "output_bytes", "is_overwritten"]).to_pylist():
        name = row["output_uri"]
        if name not in in_use and name.startswith(IMAGES) and stays_inside(name):
            # None: a run that was cut off may have replaced the file, so its content says nothing.
            digests.setdefault(name, set()).update({row["output_sha256"], *([None] if row["is_overwritten"] else [])})
            sizes[name] = max(sizes.get(name, 0), row["output_bytes"] or 0)
    with ThreadPoolExecutor(THREADS) as pool:
        is_deleted = list(pool.map(partial(delete_file, output), digests.items()))
    if output.local:
        for name in digests:
            delete_empty_folders(Path(output.full(name)).parent, Path(output.full(IMAGES)))
    deleted = [name for name, is_gone in zip(digests, is_deleted, strict=True) if is_gone]
    size = sum(sizes[name] for name in deleted)
    return {"files": len(deleted), "bytes": size, "changed_files": len(digests) - len(deleted)}


def delete_file(output: Store, file: tuple[str, set[str | None]]) -> bool:
    """Delete a file if it has one of the digests. Return False if it has not, because a user changed it."""
    name, digests = file
    try:
        if None not in digests and hashlib.sha256(output.read(name)).hexdigest() not in digests:
            return False
        output.delete(name)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except IsADirectoryError:
        return False
    return True


def delete_empty_folders(folder: Path, top: Path) -> None:
    """Delete a folder and its parents below `top`, as long as they are empty. Their names may be those of people."""
    with suppress(OSError):
        while top in folder.parents:
            folder.rmdir()
            folder = folder.parent


def delete_reports(output: Store, pending: pa.Table, kind: Kind) -> int:
    """Delete the reports that can show removed images: those of the runs that made the rows, for a request all reports.

    Rows that earlier prunes or runs removed may have been in any report. `imagemill report` writes a report again.
    """
    if kind == "old versions":
        return 0
    names = output.names("runs") if kind == "request" else pending["run_id"].unique().to_pylist()
    paths = [f"runs/{name}/report.html" for name in names if name and RUN_ID.fullmatch(name)]
    with ThreadPoolExecutor(THREADS) as pool:
        existing = [path for path, exists in zip(paths, pool.map(output.exists, paths), strict=True) if exists]
        list(pool.map(output.delete, existing))
    return len(existing)


def forget_images(output: Store, ids: pa.ChunkedArray, folder: str) -> None:
    """Remove image ids from the lists of superseded images, of obsolete rejects, and of images that were removed before."""
    lists = [entry.path for entry in output.entries("runs") if entry.path.endswith((f"/{SUPERSEDED}", f"/{REMOVED}"))]
    lists += [entry.path for entry in output.entries(obsolete_rejects.FOLDER)]
    for path in lists:
        table = read_part(output, path, None)
        if path.startswith(f"{folder}/") or "image_id" not in table.schema.names:
            continue
        rest = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=ids)))
        if not len(rest) and not path.endswith(REMOVED):
            output.delete(path)
        elif len(rest) < len(table):
            output.write(path, parquet_bytes(rest, LEVEL), durable=True)


def list_of_removed(pending: pa.Table, kind: Kind, folder: str) -> pa.Table:
    """Return what was removed, one row per image: its id, for a request only a digest, and its rows and rejects.

    The digest is the SHA-256 of PRUNE_ID/IMAGE_ID. Who knows the path of an image can prove that the image was removed.
    Others cannot compare the digest with other tables.
    """
    is_reject = pc.equal(pending["folder"], "rejects").cast(pa.int64())
    counted = pending.select(["image_id"]).append_column("is_reject", is_reject)
    images = counted.group_by("image_id", use_threads=False).aggregate([("is_reject", "sum"), ("is_reject", "count")])
    rejects = images["is_reject_sum"]
    counts = {"rows": pc.subtract(images["is_reject_count"], rejects), "rejects": rejects}
    if kind != "request":
        return pa.table({"image_id": images["image_id"], **counts})
    prune_id = posixpath.basename(folder)
    digests = [hashlib.sha256(f"{prune_id}/{image}".encode()).hexdigest() for image in images["image_id"].to_pylist()]
    return pa.table({"digest": digests, **counts})
