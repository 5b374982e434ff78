"""An export as `imagemill export` left it, read as the snapshot that it is."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.output.snapshot import Snapshot, read_snapshot
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

LATENTS, MANIFEST, UNFINISHED = "latents", "export.json", "UNFINISHED"
"""Below an export: its parts; what it is, written last; what says that it is not whole."""


def open_snapshot(
    place: Store, run: str | None = None, as_of: str | None = None, model: str | None = None, where: str | None = None
) -> Snapshot:
    """The snapshot of an OUTPUT, or what an export holds, of rows for which an SQL condition holds.

    Raises: ConfigError, also for an export that is not whole or not Parquet; StorageError.
    """
    if place.exists(UNFINISHED):
        raise ConfigError(f"{place.url}: an export that is under way or was cut off: run imagemill export again")
    if not place.exists(MANIFEST):
        state = read_snapshot(place, run, as_of, model)
    elif run or as_of or model:
        raise ConfigError(f"{place.url} is an export, of one state alone: --run, --as-of and --model choose when it is made")
    else:
        state = read_export(place)
    return state.where(where) if where else state


def read_export(place: Store) -> Snapshot:
    """All rows of an export. Raises: ConfigError when it is not Parquet; StorageError for damage to its record or a part."""
    try:
        form = json.loads(place.read(MANIFEST))["format"]
    except (ValueError, KeyError):
        raise StorageError(f"{place.uri(MANIFEST)}: damaged: export again") from None
    if form != "parquet":
        raise ConfigError(f"{place.url} is an export to {form}, which only other tools read: export to parquet for this")
    parts, part, row = list_parts(place, LATENTS), [], []
    schema = pa.schema([])
    for number, path in enumerate(parts):
        try:
            with place.fs.open(place.full(path), "rb") as f, pq.ParquetFile(f) as file:
                rows, schema = file.metadata.num_rows, file.schema_arrow
        except (pa.ArrowException, *STORE_FAILURES) as e:
            raise StorageError(f"{place.uri(path)}: a damaged part ({reason(e)}): export again") from None
        part.append(np.full(rows, number, np.int32))
        row.append(np.arange(rows, dtype=np.int32))
    empty = [np.empty(0, np.int32)]
    whole = np.concatenate(part or empty), np.concatenate(row or empty)
    return Snapshot(place, "compress", schema.remove_metadata(), parts, *whole, len(whole[0]), 0)
