"""Rejects whose images have left the input since. Nobody waits for them any more.

Only a run lists its input, so each run notes which rejects it did not find there: `status` and `failures` read OUTPUT alone.
The note of an input is written anew by each of its runs, so an image that comes back waits again.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.parts import check_readable, read_parts
from imagemill.pipeline.output.run_history import read_run_config, read_run_records
from imagemill.pipeline.schema import parquet_bytes
from imagemill.pipeline.storage import Store

FOLDER = "runs/departed"
KEYS = ["image_id", "fence"]
"""A reject: an image may be rejected again by a later run, over another input perhaps."""
NOTE_SCHEMA = pa.schema([("image_id", pa.string()), ("fence", pa.int64())])
NOTE_LEVEL = 3


def record_obsolete_rejects(output: Store, source: str, absent: pa.Table) -> None:
    """Note which rejects of an input are of images that its listing does not hold.

    Args:
        source: the URL of the input that was listed.
        absent: as `rejects.read_rejects` returns them. Images of other inputs of OUTPUT are among them, and are left out.

    Raises: StorageError; what the store's client raises.
    """
    path = f"{FOLDER}/{hashlib.blake2b(source.encode(), digest_size=16).hexdigest()}.parquet"
    runs = [run_id for run_id in absent["run_id"].unique().to_pylist() if run_id and run_input_url(output, run_id) == source]
    departed = absent.filter(pc.is_in(absent["run_id"], value_set=pa.array(runs, pa.string()))).select(KEYS)
    if len(departed):
        output.write(path, parquet_bytes(departed, NOTE_LEVEL))
    elif output.exists(path):
        output.delete(path)


def run_input_url(output: Store, run_id: str) -> str | None:
    """The URL of a run's input; None for a run of which nothing is there any more, or that cannot be read."""
    try:
        for record in read_run_records(output, [run_id]):
            return str(record["input"])
        config = read_run_config(output, {"run_id": run_id})
    except (FileNotFoundError, StorageError):
        return None
    return Store(str(config.input), config.storage).url


def is_obsolete(output: Store, rejects: pa.Table) -> np.ndarray:
    """For each reject (image_id, fence) whether its image has left its input, (N,) bool. Raises: StorageError."""
    notes = [check_readable(output, entry) for entry in output.entries(FOLDER)] if len(rejects) else []
    if not notes:
        return np.zeros(len(rejects), bool)
    noted = read_parts(output, notes, KEYS)
    return pc.is_in(reject_keys(rejects), value_set=reject_keys(noted).combine_chunks()).to_numpy()


def reject_keys(rejects: pa.Table) -> pa.ChunkedArray:
    """image_id and fence of rejects as one text each."""
    fencing_token = rejects["fence"].fill_null(0).cast(pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(rejects["image_id"], fencing_token, " ")
