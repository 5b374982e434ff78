"""Parts in the place of other parts: a note, the new part, and only then the old ones go.

Wherever that stops, `part_paths` (parts.py) gives either the old ones or the new one, and `settle` ends it.
"""

import json
import secrets
import time

import pyarrow as pa

from imagemill.pipeline.output.parts import NOTES_FOLDER, read_replacement_notes
from imagemill.pipeline.schema import parquet_bytes, part_name
from imagemill.pipeline.storage import Store

GRACE_SECONDS = 3600.0
"""A note stays so long by the store's clock, for whoever is in the middle of a listing."""


def replace_parts(output: Store, folder: str, old: set[str], table: pa.Table, level: int) -> None:
    """Write what is to stay of the parts `old` of a folder as one part, and take them away.

    Only for the holder of OUTPUT.

    Args: table: without a row, nothing is to stay. level: of zstd.
    """
    new = f"{folder}/{part_name(table)}" if len(table) else None
    data = parquet_bytes(table, level)
    if new in old:
        # The same rows by their identities: there must be no moment at which the note names a part that is of before.
        output.write(new, data, durable=True)
    gone = sorted(old - {new})
    note = {"new": new, "old": gone, "at": time.time()}
    output.write(f"{NOTES_FOLDER}/{secrets.token_hex(16)}.json", json.dumps(note).encode(), durable=True)
    if new and new not in old:
        output.write(new, data, durable=True)
    for path in gone:
        output.delete(path)


def finish_interrupted_merges(output: Store) -> None:
    """End what a run was killed in, and forget what is long done. Only for the holder of OUTPUT, before it lists parts."""
    if not (told := read_replacement_notes(output)):
        return
    listed = {entry.path for folder in ("results", "rejects") for entry in output.entries(folder)}
    for path, note in told:
        done = note["new"] is None or note["new"] in listed
        if done:
            for old in listed.intersection(note["old"]):
                output.delete(old)
        # Not by the time that the note states: its writer's clock may be wrong by any amount. A note from the future is kept
        # no longer than one from the past.
        if done and abs(output.age(path)) < GRACE_SECONDS:
            continue
        output.delete(path)
