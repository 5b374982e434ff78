"""Open the result of `imagemill export` as a snapshot."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.output.snapshot import Snapshot, read_snapshot
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

LATENTS, MANIFEST, UNFINISHED = "latents", "export.json", "UNFINISHED"
"""Names in an export: the folder of parts, the description that is written last, and the mark of an incomplete export."""


def open_snapshot(
    place: Store, run: str | None = None, as_of: str | None = None, model: str | None = None, where: str | None = None
) -> Snapshot:
    """Open the snapshot of an OUTPUT or an export.

    Args:
        place: the OUTPUT or the export.
        run: as `snapshot.read_snapshot`; not for exports.
        as_of: as `snapshot.read_snapshot`; not for exports.
        model: as `snapshot.read_snapshot`; not for exports.
        where: SQL condition that the rows must fulfil.

    Raises:
        ConfigError: when no row matches, or the export is incomplete or not Parquet.
        StorageError: when a part or the description is damaged.
    """
    if place.exists(UNFINISHED):
        raise ConfigError(f"{place.url}: the export is still running or was cut off. Run `imagemill export` again")
    if not place.exists(MANIFEST):
        state = read_snapshot(place, run, as_of, model)
    elif run or as_of or model:
        raise ConfigError(f"{place.url}: is an export of one state. Use --run, --as-of and --model when you make the export")
    else:
        state = read_export(place)
    return state.where(where) if where else state


def check_decodable(place: Store) -> None:
    """Check that the values of an export are what a decoder takes. An OUTPUT always passes.

    Raises:
        ConfigError: when the export is scaled for trainers.
    """
    if place.exists(MANIFEST) and read_manifest(place).get("scaled"):
        raise ConfigError(f"{place.url}: the latents are scaled, so they cannot be decoded. Decode the output instead")


def read_manifest(place: Store) -> dict[str, Any]:
    """Return the content of `export.json`.

    Raises:
        StorageError: when the file is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads(place.read(MANIFEST))
    except ValueError:
        manifest = {}
    if "format" not in manifest:
        raise StorageError(f"{place.uri(MANIFEST)}: damaged. Export again")
    return manifest


def read_export(place: Store) -> Snapshot:
    """Return the snapshot of all rows of an export.

    Raises:
        ConfigError: when the export is not Parquet.
        StorageError: when a part or the description is damaged.
    """
    form = read_manifest(place)["format"]
    if form != "parquet":
        raise ConfigError(f"{place.url}: is an export to {form}, which this command cannot read. Export to parquet instead")
    parts, part, row = list_parts(place, LATENTS), [], []
    schema = pa.schema([])
    for number, path in enumerate(parts):
        try:
            with place.open(path) as f, pq.ParquetFile(f) as file:
                rows, schema = file.metadata.num_rows, file.schema_arrow
        except store_failures(pa.ArrowException) as e:
            raise StorageError(f"{place.uri(path)}: a damaged part ({reason(e)}). Export again") from None
        part.append(np.full(rows, number, np.int32))
        row.append(np.arange(rows, dtype=np.int32))
    empty = [np.empty(0, np.int32)]
    whole = np.concatenate(part or empty), np.concatenate(row or empty)
    return Snapshot(place, "compress", schema.remove_metadata(), parts, *whole, len(whole[0]), 0)
