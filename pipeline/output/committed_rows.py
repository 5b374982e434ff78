"""What the committed rows and rejects say of the images of a listing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.output.origins import find_moved, number_places
from imagemill.pipeline.output.parts import KEYS, SUPERSEDED, check_readable, scan_parts
from imagemill.pipeline.storage import Store


@dataclass
class NewestRows:
    """For each image of a list, what the newest of its rows says; all arrays have one value an image."""

    fencing_token: np.ndarray
    """Of the run that made the row; -1 without one."""
    is_same_version: np.ndarray
    """Whether the row's version is the one asked for."""
    has_row: np.ndarray
    """Whether there is any row, be it one that counts no more."""
    row_counts: np.ndarray
    """How many rows there are of the version asked for: more than one where a run was killed before its account."""
    max_fencing_token: np.ndarray
    """The highest fence of a run that made a row of it, or was to do it again; -1 without one."""
    moved_from: np.ndarray
    """The place that the row's source was in (`places`), where that is another than now; -1 where it is the same."""
    places: dict[str, int]
    total_rows: int = 0
    """Rows there are in all, of other images too."""


def match_images(table: pa.Table, ids: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """The rows of a table whose image is among `ids`, and where there it is."""
    place = pc.index_in(table["image_id"], value_set=ids)
    known = pc.is_valid(place)
    return table.filter(known), place.filter(known).to_numpy().astype(np.int64)


def match_versions(table: pa.Table, ids: pa.Array, versions: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """The rows of a table that are of these images in these versions, and where they are among them."""
    table, place = match_images(table, ids)
    same = pc.equal(table["version"], versions.take(pa.array(place))).to_numpy()
    return table.filter(pa.array(same)), place[same]


def read_newest_rows(output: Store, parts: Sequence[str], inputs: pa.Table) -> NewestRows:
    """The newest committed row of each image whose output files are still that row's.

    Args: inputs: image_id, version, source_uri and rel_path of the images, as schema.REFERENCE has them.

    Raises: StorageError for a part that is damaged.
    """
    ids, versions = (inputs[name].combine_chunks() for name in KEYS)
    # Of so many images together they may be longer than the offsets of plain strings can say.
    uris, names = (inputs[name].cast(pa.large_string()).combine_chunks() for name in ("source_uri", "rel_path"))
    same, there, files = (np.zeros(len(ids), bool) for _ in range(3))
    marked = read_superseded(output, ids)
    fencing_tokens, unmoved = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int32)
    newest = NewestRows(fencing_tokens, same, there, np.zeros(len(ids), np.uint8), marked, unmoved, {})
    for chunk in scan_parts(output, parts, [*KEYS, "fence", "output_bytes", "source_uri"]):
        newest.total_rows += len(chunk)
        table, place = match_images(chunk, ids)
        fencing_token = table["fence"].fill_null(0).to_numpy()
        same = pc.equal(table["version"], versions.take(pa.array(place))).to_numpy()
        order = np.argsort(fencing_token, kind="stable")
        order = order[fencing_token[order] >= newest.fencing_token[place[order]]]
        # Of several rows of one image the last that is assigned stays: that of the highest fence.
        newest.has_row[place] = True
        np.add.at(newest.row_counts, place[same], 1)
        newest.fencing_token[place[order]], newest.is_same_version[place[order]] = fencing_token[order], same[order]
        taken = pa.array(place)
        before = find_moved(table["source_uri"], uris.take(taken), names.take(taken))
        newest.moved_from[place[order]] = number_places(before, newest.places)[order]
        files[place[order]] = pc.is_valid(table["output_bytes"]).to_numpy()[order]
    robbed = files & (marked > newest.fencing_token)
    np.maximum(marked, newest.fencing_token, out=newest.max_fencing_token)
    newest.fencing_token[robbed], newest.is_same_version[robbed] = -1, False
    return newest


def read_superseded(output: Store, ids: pa.Array, until: str | None = None) -> np.ndarray:
    """For each image the fence of the last run that was to do it again, and may have been cut off; -1 without one.

    Its files may be that run's: a row of a lower fence that names files counts no more, one that holds a latent alone is
    still whole.

    Args: until: only runs that began by then, as run ids are written (20260301T235959Z).

    Raises: StorageError, also for marks that are damaged: without them older rows would count over newer files.
    """
    last = np.full(len(ids), -1, np.int64)
    marks = [check_readable(output, e) for e in output.entries("runs") if e.path.endswith(f"/{SUPERSEDED}")]
    # An id that does not begin with a time, such as a test's, is as old as need be.
    marks = [path for path in marks if until is None or path.split("/")[1][: len(until)] <= until]
    for chunk in scan_parts(output, marks, ["image_id", "fence"]):
        table, place = match_images(chunk, ids)
        np.maximum.at(last, place, table["fence"].to_numpy())
    return last
