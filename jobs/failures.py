"""The rejects of an OUTPUT: listed, counted by reason, exported."""

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from imagemill.jobs.console import console, number
from imagemill.jobs.outputs import check_exists
from imagemill.jobs.tables import encoded, table_target
from imagemill.pipeline.images.errors import DAMAGED_IMAGE
from imagemill.pipeline.output.rejects import group_rejects, read_waiting_rejects
from imagemill.pipeline.sources.web import redact_secrets
from imagemill.pipeline.storage import Store

COLUMNS = ["image_id", "source_uri", "rel_path", "stage", "error_class", "error", "transient", "attempts", "run_id"]


def show_failures(output: Store, by_reason: bool = False, export: str | None = None, overwrite: bool = False) -> None:
    """Args: overwrite: replace a file that imagemill did not write.

    Raises: StorageError when OUTPUT is not there; ConfigError for a file of another kind, or of the user.
    """
    target = table_target(export, overwrite)
    check_exists(output)
    rejects = read_waiting_rejects(output, COLUMNS).sort_by("rel_path")
    if target:
        target.write(encoded(rejects, target.path))
        console.print(f"{number(len(rejects), 'reject')} in {target.path}")
    elif not len(rejects):
        console.print("no rejects")
    elif by_reason:
        console.print(reasons(rejects))
    else:
        table = Table("image", "stage", "class", "reason", "attempts", box=None)
        for row in rejects.to_pylist():
            table.add_row(*(shown(row[name]) for name in ("rel_path", "stage", "error_class", "error", "attempts")))
        console.print(table)


def reasons(rejects: pa.Table) -> Table:
    """Rejects by stage and class, most frequent first, each with an example."""
    table = Table("stage", "class", "images", "tried again by", "for example", "reason there", box=None)
    for row in group_rejects(rejects).to_pylist():
        damaged = row["error_class"] == DAMAGED_IMAGE
        by_person = "--accept-damaged, or a new file" if damaged else "--retry-failed, or a new file"
        again = "the next run" if row["transient_any"] else by_person
        cells = (
            row["stage"],
            row["error_class"],
            f"{row['rel_path_count']:,}",
            again,
            row["rel_path_first"],
            row["error_first"],
        )
        table.add_row(*map(shown, cells))
    return table


def shown(value: object) -> Text:
    """What a table shows of a name or an error: brackets are no markup, and secrets of addresses are left out."""
    return Text(redact_secrets(str(value)))
