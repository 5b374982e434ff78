"""Replace parts by a new part: write a note, write the new part, and only then delete the old parts.

If a run is killed in between, `list_parts` (parts.py) lists either the old parts or the new one, and the next run calls
`finish_interrupted_merges`.
"""

import json
import secrets
import time
from typing import Any

import pyarrow as pa

from imagemill.pipeline.output.parts import NOTES_FOLDER, read_replacement_notes
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import part_name
from imagemill.pipeline.storage import Store

GRACE_SECONDS = 3600.0
"""Time that a note is kept, by the store's clock, for readers that are in the middle of a listing."""


def replace_parts(
    output: Store,
    folder: str,
    old: set[str],
    table: pa.Table,
    level: int,
    notes: list[tuple[str, dict[str, Any]]] | None = None,
) -> None:
    """Replace parts of a folder by one part. Only the holder of the lease may call this.

    Args:
        output: the OUTPUT.
        folder: `results` or `rejects`.
        old: paths of the parts to replace.
        table: the rows of the new part; no rows to only delete the old parts.
        level: zstd compression level.
        notes: what `read_replacement_notes` returned since the lease was taken; read again if absent.
    """
    new = f"{folder}/{part_name(table)}" if len(table) else None
    data = parquet_bytes(table, level)
    release_name(output, new, read_replacement_notes(output) if notes is None else notes)
    if new in old:
        # The new part has the same rows, so the same name. It is written first, because the note must name the new content.
        output.write(new, data, durable=True)
    deleted = sorted(old - {new})
    note = {"new": new, "old": deleted, "at": time.time()}
    output.write(f"{NOTES_FOLDER}/{secrets.token_hex(16)}.json", json.dumps(note).encode(), durable=True)
    if new and new not in old:
        output.write(new, data, durable=True)
    for path in deleted:
        output.delete(path)


def release_name(output: Store, name: str | None, notes: list[tuple[str, dict[str, Any]]]) -> None:
    """Remove the name of a new part from the replaced parts in notes, which would hide and delete the new part.

    Names are hashes of rows: a merged part that loses the rows of others gets the name that a part had before the merge.
    """
    for path, note in notes:
        if name in note["old"]:
            note["old"] = [old for old in note["old"] if old != name]
            output.write(path, json.dumps(note).encode(), durable=True)


def finish_interrupted_merges(output: Store) -> None:
    """Finish replacements of parts that a killed run began, and delete old notes.

    Only the holder of the lease may call this, before it lists parts.
    """
    if not (notes := read_replacement_notes(output)):
        return
    existing = {entry.path for folder in ("results", "rejects") for entry in output.entries(folder)}
    for path, note in notes:
        is_committed = note["new"] is None or note["new"] in existing
        if is_committed:
            for old in existing.intersection(note["old"]):
                output.delete(old)
        # The time in the note is not used, because its writer's clock may be wrong by any amount. A note from the future is
        # kept no longer than one from the past.
        if is_committed and abs(output.age(path)) < GRACE_SECONDS:
            continue
        output.delete(path)
