"""Read the rejects of an OUTPUT: for a plan, and for commands that list the images that wait for a retry."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.output.committed_rows import match_images, match_versions
from imagemill.pipeline.output.obsolete_rejects import is_obsolete
from imagemill.pipeline.output.parts import KEYS, list_parts, read_parts, scan_parts
from imagemill.pipeline.output.snapshot import select_newest_rows
from imagemill.pipeline.storage import Store

ABSENT_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("fence", pa.int64()),
        ("run_id", pa.string()),
        ("rel_path", pa.string()),
        ("error_class", pa.string()),
    ]
)


@dataclass(frozen=True)
class RejectHistory:
    """What the rejects of an OUTPUT say about the images of a listing. Arrays have one value per image."""

    attempts: np.ndarray
    """int64: how many times this version of the image was tried and rejected."""
    waits: np.ndarray
    """bool: whether the newest reject of this version is final, so that only `--retry-failed` tries the image again."""
    is_retried: np.ndarray
    """bool: whether `--retry-failed` selects the newest reject of this version."""
    absent: pa.Table
    """The newest reject of each image that the listing does not contain (ABSENT_SCHEMA)."""


def read_rejects(
    output: Store,
    parts: Sequence[str],
    ids: pa.Array,
    versions: pa.Array,
    accepted: Collection[str] = (),
    retried_class: str | None = None,
) -> RejectHistory:
    """Read the rejects of an OUTPUT once, and compare them with the images of a listing.

    Args:
        output: the OUTPUT.
        parts: paths of its reject parts.
        ids: image_id of the listed images, (N,).
        versions: version of the listed images, (N,).
        accepted: error classes that this run accepts, so that their rejects do not wait.
        retried_class: error class of the rejects that `--retry-failed` selects; None selects all rejects.

    Raises:
        StorageError: when a part is damaged.
    """
    attempts, waits, is_retried = np.zeros(len(ids), np.int64), np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    newest_fencing_token = np.full(len(ids), -1, np.int64)
    absent = [ABSENT_SCHEMA.empty_table()]
    for chunk in scan_parts(output, parts, [*KEYS, "fence", "transient", "attempts", "error_class", "run_id", "rel_path"]):
        chunk = chunk.set_column(
            chunk.schema.get_field_index("fence"), "fence", chunk["fence"].fill_null(0).cast(pa.int64())
        )
        absent.append(
            chunk.filter(pc.invert(pc.is_in(chunk["image_id"], value_set=ids)))
            .select(ABSENT_SCHEMA.names)
            .cast(ABSENT_SCHEMA)
        )
        table, place = match_versions(chunk, ids, versions)
        np.maximum.at(attempts, place, table["attempts"].to_numpy())
        fencing_token, is_final = table["fence"].to_numpy(), ~table["transient"].to_numpy()
        is_final &= ~pc.is_in(table["error_class"], pa.array(accepted, pa.string())).to_numpy()
        is_selected = np.ones(len(table), bool)
        if retried_class is not None:
            is_selected = pc.equal(table["error_class"], retried_class).fill_null(False).to_numpy()
        # The last assignment wins: the reject of the newest run, and of two rejects of one run the final one.
        order = np.lexsort((is_final, fencing_token))
        order = order[fencing_token[order] >= newest_fencing_token[place[order]]]
        newest_fencing_token[place[order]], waits[place[order]] = fencing_token[order], is_final[order]
        is_retried[place[order]] = is_selected[order]
    return RejectHistory(attempts, waits, is_retried, select_newest_rows(pa.concat_tables(absent)))


def read_waiting_rejects(output: Store, columns: list[str]) -> pa.Table:
    """Return the newest reject of each image that has no later row, with some columns.

    Rejects of images that the last run of their input no longer found are left out.

    Raises:
        StorageError: when a part is damaged.
    """
    parts = list_parts(output, "rejects")
    rejects = select_newest_rows(read_parts(output, parts, list(dict.fromkeys([*columns, "image_id", "fence"]))))
    row_token = np.full(len(rejects), -1, np.int64)
    for chunk in scan_parts(output, list_parts(output, "results") if parts else [], ["image_id", "fence"]):
        table, index = match_images(chunk, rejects["image_id"].combine_chunks())
        np.maximum.at(row_token, index, table["fence"].fill_null(0).to_numpy())
    waits = (row_token < rejects["fence"].cast(pa.int64()).to_numpy()) & ~is_obsolete(output, rejects)
    return rejects.filter(pa.array(waits)).select(columns)


def group_rejects(rejects: pa.Table) -> pa.Table:
    """Group rejects by stage and class, the most frequent first.

    Returns:
        A table with stage, error_class, rel_path_count, transient_any, and the first rel_path and error of each group.
    """
    groups = rejects.group_by(["stage", "error_class"], use_threads=False).aggregate(
        [("rel_path", "count"), ("rel_path", "first"), ("error", "first"), ("transient", "any")]
    )
    return groups.sort_by([("rel_path_count", "descending")])
