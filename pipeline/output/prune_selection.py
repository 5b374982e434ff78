"""Select the rows and rejects of an OUTPUT that a prune removes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.output.committed_rows import read_superseded
from imagemill.pipeline.output.parts import iterate_parts, list_part_sizes
from imagemill.pipeline.output.snapshot import newest_row_indexes
from imagemill.pipeline.storage import Store

PENDING_SCHEMA = pa.schema(
    [
        # "results" or "rejects"; empty for an image that a request names by its id or path
        ("folder", pa.string()),
        ("image_id", pa.string()),
        ("version", pa.string()),
        ("fence", pa.int64()),
        ("rel_path", pa.string()),
        ("run_id", pa.string()),
        ("output_uri", pa.string()),
        ("output_sha256", pa.string()),
        ("output_bytes", pa.int64()),
        # Whether a run that was cut off may have replaced the file of the row.
        ("is_overwritten", pa.bool_()),
    ]
)
PARTS_AHEAD = 64
COLUMNS = {
    "results": ["image_id", "version", "fence", "rel_path", "run_id", "output_uri", "output_sha256", "output_bytes"],
    "rejects": ["image_id", "version", "fence", "rel_path", "run_id"],
}


@dataclass(frozen=True)
class Selection:
    """What a prune removes."""

    rows: pa.Table
    """PENDING_SCHEMA."""
    total_rows: int
    """Rows in `results/`, including those that stay."""
    part_bytes: int
    """About how many bytes the removed rows take in parts."""
    named_ids: Sequence[str] = ()
    """image_id of images that a request names by id or path, whether they have rows or not."""

    @property
    def pending(self) -> pa.Table:
        """`rows`, and one row without `folder` for each of `named_ids` (PENDING_SCHEMA)."""
        ids = pa.table({"image_id": pa.array(self.named_ids, pa.string())})
        return pa.concat_tables([self.rows, pending_rows(ids, "")])


def row_keys(table: pa.Table) -> pa.ChunkedArray:
    """Return image_id, version and fencing token of each row as one text."""
    fencing_token = table["fence"].cast(pa.int64()).fill_null(0).cast(pa.string())
    return pc.binary_join_element_wise(table["image_id"], table["version"], fencing_token, "/")


def select_images(output: Store, is_selected: Callable[[pa.Table], pa.Array]) -> Selection:
    """Select all rows and rejects of some images.

    Args:
        output: the OUTPUT.
        is_selected: returns for each row of a table with image_id and rel_path whether its image is selected, or null.

    Raises:
        StorageError: when a part cannot be read.
    """
    selected = [PENDING_SCHEMA.empty_table()]
    total_rows, part_bytes = 0, 0.0
    for folder, columns in COLUMNS.items():
        sizes = list_part_sizes(output, folder)
        for path, table in iterate_parts(output, sizes, columns, PARTS_AHEAD):
            total_rows += len(table) if folder == "results" else 0
            rows = table.filter(is_selected(table))
            part_bytes += sizes[path] * len(rows) / max(1, len(table))
            selected.append(pending_rows(rows, folder))
    rows = pa.concat_tables(selected)
    return Selection(mark_overwritten(output, rows), total_rows, round(part_bytes))


def select_old_versions(output: Store) -> Selection:
    """Select the rows that a newer row of their image replaced, and the rejects that a newer row or reject replaced.

    Raises:
        StorageError: when a part cannot be read.
    """
    everything = select_images(output, lambda table: pa.array([True] * len(table), pa.bool_()))
    rows = everything.rows
    codes = rows["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    tokens, is_row = rows["fence"].to_numpy(), pc.equal(rows["folder"], "results").to_numpy()
    # Row and reject of one run do not exist for one image, so fencing tokens order them.
    newest = np.zeros(len(rows), bool)
    newest[newest_row_indexes([codes, is_row.astype(np.int8)], tokens, np.zeros(len(rows), np.int64))] = True
    newest_row_token = np.full(codes.max(initial=-1) + 1, -1, np.int64)
    newest_row_token[codes[newest & is_row]] = tokens[newest & is_row]
    is_old = ~newest | (~is_row & (tokens < newest_row_token[codes]))
    # Rows of one run and version have equal keys, by which a prune finds them. The newest one must stay.
    keys = row_keys(rows)
    kept_keys = keys.filter(pa.array(~is_old)).combine_chunks()
    old = rows.filter(pa.array(is_old & ~pc.is_in(keys, value_set=kept_keys).to_numpy()))
    share = len(old) / max(1, len(rows))
    return Selection(old, everything.total_rows, round(everything.part_bytes * share))


def pending_rows(rows: pa.Table, folder: str) -> pa.Table:
    """Return rows with the columns of PENDING_SCHEMA. Columns that they lack are null, their fencing tokens 0."""
    columns = {"folder": pa.array([folder] * len(rows), pa.string()), "is_overwritten": pa.array([False] * len(rows))}
    columns |= {name: rows[name] for name in rows.schema.names}
    columns["fence"] = rows["fence"].cast(pa.int64()).fill_null(0) if "fence" in columns else pa.array([0] * len(rows))
    nulls = {field.name: pa.nulls(len(rows), field.type) for field in PENDING_SCHEMA if field.name not in columns}
    return pa.table({**columns, **nulls}).select(PENDING_SCHEMA.names).cast(PENDING_SCHEMA)


def mark_overwritten(output: Store, rows: pa.Table) -> pa.Table:
    """Fill in `is_overwritten`: a run began to process the image again and has not committed a row since."""
    ids = rows["image_id"].unique()
    if not len(ids):
        return rows
    index = pc.index_in(rows["image_id"], value_set=ids).to_numpy()
    newest = np.full(len(ids), -1, np.int64)
    is_row = pc.equal(rows["folder"], "results").to_numpy()
    np.maximum.at(newest, index[is_row], rows["fence"].to_numpy()[is_row])
    is_overwritten = read_superseded(output, ids) > newest
    place = PENDING_SCHEMA.get_field_index("is_overwritten")
    return rows.set_column(place, PENDING_SCHEMA.field(place), pa.array(is_overwritten[index]))
