"""What the committed rows of an OUTPUT say about the images of a listing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.output.origins import find_moved, number_places
from imagemill.pipeline.output.parts import KEYS, SUPERSEDED, check_readable, scan_parts
from imagemill.pipeline.output.run_history import PRUNED
from imagemill.pipeline.storage import Store


@dataclass
class NewestRows:
    """What the newest row of each listed image says. Arrays have one value per image, in the order of the listing."""

    fencing_token: np.ndarray
    """int64: fencing token of the run that made the row; -1 without a row that counts."""
    is_same_version: np.ndarray
    """bool: whether the row has the version of the listed image."""
    has_row: np.ndarray
    """bool: whether there is any row of the image, even one whose files may have been overwritten."""
    row_counts: np.ndarray
    """uint8: rows of the listed version. More than one if a run was killed before it removed duplicates."""
    max_fencing_token: np.ndarray
    """int64: highest fencing token of a run that made a row of the image or began to process it again; -1 without one."""
    moved_from: np.ndarray
    """int32: index in `places` of the place where the row's source was, if the image is now elsewhere; else -1."""
    places: dict[str, int]
    """Places where sources of rows were, with their index."""
    total_rows: int = 0
    """Rows in OUTPUT, including those of other images."""


def match_images(table: pa.Table, ids: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """Return the rows of a table whose image_id is in `ids`, and their indexes in `ids`, int64."""
    index = pc.index_in(table["image_id"], value_set=ids)
    is_match = pc.is_valid(index)
    return table.filter(is_match), index.filter(is_match).to_numpy().astype(np.int64)


def match_versions(table: pa.Table, ids: pa.Array, versions: pa.Array) -> tuple[pa.Table, np.ndarray]:
    """Return the rows of a table that match both an image_id and its version, and their indexes in `ids`, int64."""
    table, index = match_images(table, ids)
    is_same = pc.equal(table["version"], versions.take(pa.array(index))).to_numpy()
    return table.filter(pa.array(is_same)), index[is_same]


def read_newest_rows(output: Store, parts: Sequence[str], inputs: pa.Table, prefix: str | None = None) -> NewestRows:
    """Find the newest committed row of each listed image.

    A row whose output files may have been overwritten by a later run does not count.

    Args:
        output: the OUTPUT.
        parts: paths of its result parts.
        inputs: image_id, version, source_uri and rel_path of the listed images, as in schema.REFERENCE.
        prefix: name in front of every rel_path that is not part of the source_uri.

    Raises:
        StorageError: when a part is damaged.
    """
    ids, versions = (inputs[name].combine_chunks() for name in KEYS)
    # The text of millions of images can exceed the 32-bit offsets of plain strings.
    uris, names = (inputs[name].cast(pa.large_string()).combine_chunks() for name in ("source_uri", "rel_path"))
    if prefix:
        names = pc.utf8_slice_codeunits(names, len(f"{prefix}/"))
    is_same_version, has_row, has_files = (np.zeros(len(ids), bool) for _ in range(3))
    superseding = read_superseded(output, ids)
    newest = NewestRows(
        fencing_token=np.full(len(ids), -1, np.int64),
        is_same_version=is_same_version,
        has_row=has_row,
        row_counts=np.zeros(len(ids), np.uint8),
        max_fencing_token=superseding,
        moved_from=np.full(len(ids), -1, np.int32),
        places={},
    )
    for chunk in scan_parts(output, parts, [*KEYS, "fence", "output_bytes", "source_uri"]):
        newest.total_rows += len(chunk)
        table, index = match_images(chunk, ids)
        token = table["fence"].fill_null(0).to_numpy()
        is_same = pc.equal(table["version"], versions.take(pa.array(index))).to_numpy()
        # Rows in ascending order of their fencing token: the last assignment wins, so the newest row of each image stays.
        order = np.argsort(token, kind="stable")
        order = order[token[order] >= newest.fencing_token[index[order]]]
        newest.has_row[index] = True
        np.add.at(newest.row_counts, index[is_same], 1)
        newest.fencing_token[index[order]], newest.is_same_version[index[order]] = token[order], is_same[order]
        selected = pa.array(index)
        previous_places = find_moved(table["source_uri"], uris.take(selected), names.take(selected))
        newest.moved_from[index[order]] = number_places(previous_places, newest.places)[order]
        has_files[index[order]] = pc.is_valid(table["output_bytes"]).to_numpy()[order]
    is_overwritten = has_files & (superseding > newest.fencing_token)
    np.maximum(superseding, newest.fencing_token, out=newest.max_fencing_token)
    newest.fencing_token[is_overwritten], newest.is_same_version[is_overwritten] = -1, False
    return newest


def read_superseded(output: Store, ids: pa.Array, until: str | None = None) -> np.ndarray:
    """Return, per image, the fencing token of the last run that began to process it again; -1 without such a run.

    That run may have been cut off after it overwrote the image's files. So a row with a lower fencing token that names files
    no longer counts. A row that only stores a latent still does.

    Args:
        output: the OUTPUT.
        ids: image_id of the images, (N,).
        until: only runs that began by this time, in the format of run ids (20260301T235959Z).

    Raises:
        StorageError: also when a list of superseded images is damaged, because then older rows could count wrongly.
    """
    tokens = np.full(len(ids), -1, np.int64)
    lists = [check_readable(output, entry) for entry in output.entries("runs") if entry.path.endswith(f"/{SUPERSEDED}")]
    # Run ids begin with a time, so they can be compared as text.
    lists = [path for path in lists if until is None or path.split("/")[1][: len(until)] <= until]
    for chunk in scan_parts(output, lists, ["image_id", "fence"]):
        table, index = match_images(chunk, ids)
        np.maximum.at(tokens, index, table["fence"].to_numpy())
    return tokens


def read_pruned_ids(output: Store) -> pa.Array:
    """Return image_id of the images that a prune removes at present, or removed until it was killed.

    No row of these images counts, because some of their rows, perhaps the newest ones, are gone already.

    Raises:
        StorageError: when a list of these images is damaged.
    """
    lists = [check_readable(output, entry) for entry in output.entries(PRUNED) if entry.path.endswith(f"/{SUPERSEDED}")]
    ids = [chunk["image_id"].combine_chunks() for chunk in scan_parts(output, lists, ["image_id"])]
    return pa.concat_arrays([pa.array([], pa.string()), *ids])
