"""The rejects of an OUTPUT: listed, counted by reason, exported."""

import numpy as np
import pyarrow as pa
from rich.table import Table
from rich.text import Text

from jobs.console import console, number
from jobs.inspect import check_exists
from jobs.tables import check_format, write
from pipeline.output.committed import part_paths, placed, read_parts, scan
from pipeline.output.snapshot import newest_rows
from pipeline.storage import Store

COLUMNS = ["image_id", "source_uri", "rel_path", "stage", "error_class", "error", "transient", "attempts", "run_id", "fence"]


def rejects_of(output: Store) -> pa.Table:
    """The newest reject of each image that no row has made good since, be it of a mended file or of a later model."""
    rejects = read_parts(output, part_paths(output, "rejects"), COLUMNS)
    rejects = newest_rows(rejects)
    fence = np.full(len(rejects), -1, np.int64)
    for chunk in scan(output, part_paths(output, "results"), ["image_id", "fence"]):
        table, place = placed(chunk, rejects["image_id"].combine_chunks())
        np.maximum.at(fence, place, table["fence"].fill_null(0).to_numpy())
    waiting = rejects.filter(pa.array(fence < rejects["fence"].cast(pa.int64()).to_numpy()))
    return waiting.sort_by("rel_path").drop_columns(["fence", "part"])


def show_failures(output: Store, by_reason: bool = False, export: str | None = None) -> None:
    """Raises: StorageError when OUTPUT is not there; ConfigError for a file of another kind."""
    check_format(export)
    check_exists(output)
    rejects = rejects_of(output)
    if export:
        write(rejects, export)
        console.print(f"{number(len(rejects), 'reject')} in {export}")
    elif not len(rejects):
        console.print("no rejects")
    elif by_reason:
        console.print(counted(rejects))
    else:
        table = Table("image", "stage", "class", "reason", "attempts", box=None)
        for row in rejects.to_pylist():
            table.add_row(*(Text(str(row[name])) for name in ("rel_path", "stage", "error_class", "error", "attempts")))
        console.print(table)


def counted(rejects: pa.Table) -> Table:
    """Rejects by stage and class, most frequent first, each with an example."""
    groups = rejects.group_by(["stage", "error_class"], use_threads=False).aggregate(
        [("rel_path", "count"), ("rel_path", "first"), ("error", "first"), ("transient", "any")]
    )
    table = Table("stage", "class", "images", "tried again by", "for example", "reason there", box=None)
    for row in groups.sort_by([("rel_path_count", "descending")]).to_pylist():
        again = "the next run" if row["transient_any"] else "--retry, or a new file"
        cells = (
            row["stage"],
            row["error_class"],
            f"{row['rel_path_count']:,}",
            again,
            row["rel_path_first"],
            row["error_first"],
        )
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table
