"""Find groups of images of an output that are exact or near copies of each other: a table, a file, a sheet."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.jobs.comparison import SIDE, load_comparable, load_pictures, raise_damaged, shorten
from imagemill.jobs.console import number, print_table, print_text
from imagemill.jobs.result_file import encode_table, result_file, table_file
from imagemill.pipeline.output.neighbours import find_similar_groups, link_to_first
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.storage import Store

COLUMNS = ["image_id", "rel_path", "source_uri", "content_sha256", "orig_width", "orig_height"]
GROUPS_DRAWN, COPIES_DRAWN = 50, 6


def show_duplicates(
    output: Store, threshold: float, export: str | None = None, sheet: str | None = None, overwrite: bool = False
) -> None:
    """Print the groups of copies in an output or write them to a file, and draw them on a sheet.

    Args:
        output: the output to search.
        threshold: least similarity of two images that are copies, in [0, 1].
        export: file for the table, instead of printing it; its extension gives the format.
        sheet: PNG file to draw the first GROUPS_DRAWN groups on.
        overwrite: replace files that imagemill did not write.

    Raises:
        ConfigError: when a file cannot be written.
        StorageError: when the output does not exist or cannot be read.
        VerificationError: after printing, when damaged latents were left out.
    """
    table_target, sheet_target = table_file(export, overwrite), result_file(sheet, overwrite)
    images = load_comparable(output)
    problems: list[str] = []
    _, batches = images.vectors(COLUMNS, problems)
    tables, arrays = zip(*batches, strict=True)
    rows, vectors = pa.concat_tables(tables), np.concatenate(arrays)
    copies = group_copies(rows, vectors, threshold)
    if table_target:
        table_target.write(encode_table(copies, table_target.path))
        print_text(f"{number(len(copies), 'row')} written to {table_target.path}")
    else:
        print_copies(copies)
    counts = {row["values"]: row["counts"] for row in pc.value_counts(copies["copy"]).to_pylist()}
    nouns = {"first": "group", "exact": "exact copy", "near": "near copy"}
    groups, exact, near = (number(counts.get(kind, 0), noun) for kind, noun in nouns.items())
    print_text(f"{groups} among {number(len(rows), 'image')}: {exact}, {near} (similarity of at least {threshold:g})")
    if sheet_target and len(copies):
        drawn = copies.filter(pc.less_equal(copies["group"], GROUPS_DRAWN)).to_pylist()
        members = [[row for row in drawn if row["group"] == n][:COPIES_DRAWN] for n in range(1, drawn[-1]["group"] + 1)]
        pictures = load_pictures(images, [row["image_id"] for group in members for row in group])
        tiles = [[Tile(pictures[row["image_id"]], label(row)) for row in group] for group in members]
        sheet_target.write(draw_contact_sheet(["one group per row", *[""] * (COPIES_DRAWN - 1)], tiles, SIDE))
        drawn_groups = number(len(members), "group")
        print_text(f"sheet: {sheet_target.path} ({drawn_groups}, at most {COPIES_DRAWN} images of each)")
    raise_damaged(problems)


def group_copies(rows: pa.Table, vectors: np.ndarray, threshold: float) -> pa.Table:
    """Return the rows that have copies, group by group.

    The first row of a group is the image with the most pixels. Every other row has the column `of`: the rel_path of the
    image that connects it to the first one, with the `similarity` of both. The column `copy` is "first", "exact" (the files
    of the row and of `of` have the same bytes) or "near".

    Args:
        rows: table with COLUMNS.
        vectors: the vector of each row (N,D).
        threshold: least similarity of two images that are copies.

    Returns:
        The table with the columns `group` (from 1), `copy`, `of` and `similarity` added; the last two are null for the
        first.
    """
    area = rows["orig_width"].to_numpy().astype(np.int64) * rows["orig_height"].to_numpy()
    names, digests = np.array(rows["rel_path"].to_pylist()), np.array(rows["content_sha256"].to_pylist())
    order, groups, copy, of, similarities = [], [], [], [], []
    for group_number, members in enumerate(find_similar_groups(vectors, threshold), 1):
        group = members[np.lexsort((names[members], -area[members]))]
        _, earliest, content = np.unique(digests[group], return_index=True, return_inverse=True)
        is_exact = earliest[content] != np.arange(len(group))
        linked_to, similarity = link_to_first(vectors[group], threshold)
        linked_to, similarity = np.where(is_exact, earliest[content], linked_to), np.where(is_exact, 1, similarity)
        order.append(group)
        groups += [group_number] * len(group)
        copy += ["first", *np.where(is_exact[1:], "exact", "near").tolist()]
        of += [None, *names[group[linked_to[1:]]].tolist()]
        similarities += [None, *similarity[1:].tolist()]
    copies = rows.take(pa.array(np.concatenate(order) if order else np.empty(0, np.int64)))
    added = {
        "group": pa.array(groups, pa.int64()),
        "copy": pa.array(copy, pa.string()),
        "of": pa.array(of, pa.string()),
        "similarity": pa.array(similarities, pa.float32()),
    }
    for name, values in added.items():
        copies = copies.append_column(name, values)
    return copies


def label(row: dict[str, Any]) -> str:
    """Return the line below a picture on the sheet."""
    similarity = "" if row["of"] is None else f" {row['similarity']:.2f}"
    return f"{row['copy']}{similarity}  {shorten(row['rel_path'])}"


def print_copies(copies: pa.Table) -> None:
    """Print the result of `group_copies`."""
    cells = []
    for row in copies.to_pylist():
        size = f"{row['orig_width']}×{row['orig_height']}"
        similarity = "" if row["of"] is None else f"{row['similarity']:.3f}"
        cells.append([f"{row['group']:,}", row["copy"], similarity, size, row["rel_path"], row["of"] or ""])
    print_table(["group", "copy", "similarity", "size", "image", "of"], cells)
