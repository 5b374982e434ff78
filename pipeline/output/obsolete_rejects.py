"""Obsolete rejects: their images are no longer in the input, so they no longer wait for a retry.

Only a run lists its input. So each run writes a note of the rejects whose images it did not find, for `status` and
`failures`, which read OUTPUT alone. Each run replaces the note of its input, so an image that comes back waits again.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.parts import check_readable, read_parts
from imagemill.pipeline.output.run_history import read_run_config, read_run_records
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.storage import Store

FOLDER = "runs/departed"
KEYS = ["image_id", "fence"]
"""The columns that identify a reject. A later run, perhaps of another input, may reject the same image again."""
NOTE_LEVEL = 3


def record_obsolete_rejects(output: Store, source: str, gone: pa.Table, hidden: pa.Table) -> None:
    """Write the note of an input: the rejects whose images are no longer in it.

    Args:
        output: the OUTPUT.
        source: key of the input that was listed (input_key). Rejects of other inputs are ignored.
        gone: rejects of images that are not in the input (rejects.ABSENT_SCHEMA).
        hidden: rejects of images that were not listed and may be in the input, with the same schema. They stay in the note
            if they are there, and do not get into the note.

    Raises:
        StorageError, OSError: when OUTPUT cannot be read or written.
    """
    path = f"{FOLDER}/{hashlib.blake2b(source.encode(), digest_size=16).hexdigest()}.parquet"
    if len(hidden) and output.exists(path):
        noted = reject_keys(read_parts(output, [path], KEYS)).combine_chunks()
        gone = pa.concat_tables([gone, hidden.filter(pc.is_in(reject_keys(hidden), value_set=noted))])
    runs = [run_id for run_id in gone["run_id"].unique().to_pylist() if run_id and run_input_key(output, run_id) == source]
    obsolete = gone.filter(pc.is_in(gone["run_id"], value_set=pa.array(runs, pa.string()))).select(KEYS)
    if len(obsolete):
        output.write(path, parquet_bytes(obsolete, NOTE_LEVEL))
    elif output.exists(path):
        output.delete(path)


def input_key(url: str, prefix: str | None) -> str:
    """Return what tells the inputs of an OUTPUT apart: the prefix of an input, or the URL of an input without a prefix."""
    return f"prefix {prefix}" if prefix else url


def run_input_key(output: Store, run_id: str) -> str | None:
    """Return the key of a run's input; None if the run left no readable record."""
    try:
        for record in read_run_records(output, [run_id]):
            return input_key(record["input"], record.get("prefix"))
        config = read_run_config(output, {"run_id": run_id})
    except (FileNotFoundError, StorageError):
        return None
    return input_key(Store(str(config.input), config.storage).url, config.prefix)


def is_obsolete(output: Store, rejects: pa.Table) -> np.ndarray:
    """Return, per reject (image_id, fence), whether it is obsolete, (N,) bool.

    Raises:
        StorageError: when a note is damaged.
    """
    notes = [check_readable(output, entry) for entry in output.entries(FOLDER)] if len(rejects) else []
    if not notes:
        return np.zeros(len(rejects), bool)
    obsolete = read_parts(output, notes, KEYS)
    return pc.is_in(reject_keys(rejects), value_set=reject_keys(obsolete).combine_chunks()).to_numpy()


def reject_keys(rejects: pa.Table) -> pa.ChunkedArray:
    """Return image_id and fencing token of each reject as one text."""
    fencing_token = rejects["fence"].fill_null(0).cast(pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(rejects["image_id"], fencing_token, " ")
