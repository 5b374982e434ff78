"""Groups of images of an OUTPUT that are copies of each other, exact or near: a table, a file, a sheet."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from imagemill.jobs.console import console, number
from imagemill.jobs.search import SIDE, comparable, pictures_of, raise_damaged, shortened
from imagemill.jobs.tables import encoded, table_target
from imagemill.jobs.target import target_of
from imagemill.pipeline.output.neighbours import find_similar_groups, link_to_first
from imagemill.pipeline.reports.sheets import Tile, contact_sheet
from imagemill.pipeline.storage import Store

ROW = ["image_id", "rel_path", "source_uri", "content_sha256", "orig_width", "orig_height"]
SHOWN_GROUPS, SHOWN_COPIES = 50, 6


def show_duplicates(
    output: Store, threshold: float, export: str | None = None, sheet: str | None = None, overwrite: bool = False
) -> None:
    """Print the groups of images that pairs at least as similar as `threshold` connect, or write them, and draw them.

    Args: overwrite: replace files that imagemill did not write.

    The first of a group is the one with the most pixels. "exact": the file's bytes are those of one before it in its group.

    Raises: ConfigError, StorageError; VerificationError at the end when latents were left out as they are damaged.
    """
    table, drawn = table_target(export, overwrite), target_of(sheet, overwrite)
    these = comparable(output)
    problems: list[str] = []
    _, batches = these.vectors(ROW, problems)
    tables, arrays = zip(*batches, strict=True)
    rows, vectors = pa.concat_tables(tables), np.concatenate(arrays)
    found = grouped(rows, vectors, threshold)
    if table:
        table.write(encoded(found, table.path))
        console.print(f"{number(len(found), 'row')} in {table.path}")
    else:
        console.print(listed(found))
    copies = pc.value_counts(found["copy"]).to_pylist()
    counts = {row["values"]: row["counts"] for row in copies}
    named = (("first", "group"), ("exact", "exact copy"), ("near", "near one"))
    groups, exact, near = (number(counts.get(kind, 0), noun) for kind, noun in named)
    among = number(len(rows), "image")
    console.print(f"{groups} among {among}: {exact}, {near} (similarity of {threshold:g} and more)")
    if drawn and len(found):
        shown = found.filter(pc.less_equal(found["group"], SHOWN_GROUPS)).to_pylist()
        members = [[row for row in shown if row["group"] == n][:SHOWN_COPIES] for n in range(1, shown[-1]["group"] + 1)]
        pictures = pictures_of(these, [row["image_id"] for group in members for row in group])
        tiles = [[Tile(pictures[row["image_id"]], label(row)) for row in group] for group in members]
        drawn.write(contact_sheet(["a group in each row", *[""] * (SHOWN_COPIES - 1)], tiles, SIDE))
        console.print(f"sheet: {drawn.path}, {number(len(members), 'group')}, at most {SHOWN_COPIES} images of each")
    raise_damaged(problems)


def grouped(rows: pa.Table, vectors: np.ndarray, threshold: float) -> pa.Table:
    """Rows of groups, with `group` (from 1), `copy` (first, exact or near), and the image that links them to the first.

    That image is `of`, a rel_path, and `similarity` is to it; both are null for the first. An exact copy is one of the image
    whose bytes it has.
    """
    area = rows["orig_width"].to_numpy().astype(np.int64) * rows["orig_height"].to_numpy()
    names, digests = np.array(rows["rel_path"].to_pylist()), np.array(rows["content_sha256"].to_pylist())
    order, number, copy, of, alike = [], [], [], [], []
    for count, group in enumerate(find_similar_groups(vectors, threshold), 1):
        group = group[np.lexsort((names[group], -area[group]))]
        _, earliest, content = np.unique(digests[group], return_index=True, return_inverse=True)
        exact = earliest[content] != np.arange(len(group))
        by, similar = link_to_first(vectors[group], threshold)
        by, similar = np.where(exact, earliest[content], by), np.where(exact, 1, similar)
        order.append(group)
        number += [count] * len(group)
        copy += ["first", *np.where(exact[1:], "exact", "near").tolist()]
        of += [None, *names[group[by[1:]]].tolist()]
        alike += [None, *similar[1:].tolist()]
    found = rows.take(pa.array(np.concatenate(order) if order else np.empty(0, np.int64)))
    columns = {
        "group": pa.array(number, pa.int64()),
        "copy": pa.array(copy, pa.string()),
        "of": pa.array(of, pa.string()),
        "similarity": pa.array(alike, pa.float32()),
    }
    for name, values in columns.items():
        found = found.append_column(name, values)
    return found


def label(row: dict[str, Any]) -> str:
    alike = "" if row["of"] is None else f" {row['similarity']:.2f}"
    return f"{row['copy']}{alike}  {shortened(row['rel_path'])}"


def listed(found: pa.Table) -> Table:
    table = Table("group", "image", "size", "copy", "similarity", "of", box=None)
    for row in found.to_pylist():
        size = f"{row['orig_width']}×{row['orig_height']}"
        linked = ("", Text("")) if row["of"] is None else (f"{row['similarity']:.3f}", Text(row["of"]))
        table.add_row(f"{row['group']:,}", Text(row["rel_path"]), size, row["copy"], *linked)
    return table
