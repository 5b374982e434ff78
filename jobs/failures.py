"""List, count or export the rejects of an output."""

from typing import Any

import pyarrow as pa

from imagemill.jobs.console import number, one_line, print_json, print_table, print_text
from imagemill.jobs.outputs import check_output
from imagemill.jobs.result_file import encode_table, table_file
from imagemill.pipeline.images.errors import DAMAGED_IMAGE
from imagemill.pipeline.output.rejects import group_rejects, read_waiting_rejects
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.storage import Store

COLUMNS = ["image_id", "source_uri", "rel_path", "stage", "error_class", "error", "transient", "attempts", "run_id"]


def show_failures(
    output: Store,
    by_reason: bool = False,
    export: str | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Print the current rejects of an output, one per line as `path: class: reason`, or write them to a file.

    The JSON keys are `output`, `count` and `rejects` (a list with COLUMNS), or with `by_reason` `reasons` instead of
    `rejects` (a list with `stage`, `error_class`, `count`, `transient`, `example`, `error`, most frequent first).

    Args:
        output: the output to read.
        by_reason: count the rejects by stage and class.
        export: file to write the rejects to; its extension gives the format (`result_file.TABLE_SUFFIXES`).
        overwrite: replace a file that imagemill did not write.
        as_json: print one JSON object.

    Raises:
        StorageError: when the output does not exist or cannot be read.
        ConfigError: when the file has an unknown extension, or imagemill did not write the existing file.
    """
    target = table_file(export, overwrite)
    check_output(output)
    rejects = read_waiting_rejects(output, COLUMNS).sort_by("rel_path")
    if target:
        target.write(encode_table(rejects, target.path))
    if as_json:
        reasons = {"reasons": count_reasons(rejects)} if by_reason else {"rejects": public_rows(rejects)}
        print_json({"output": output.url, "count": len(rejects), **reasons})
    elif target:
        print_text(f"{number(len(rejects), 'reject')} written to {target.path}")
    elif not len(rejects):
        print_text("no rejects")
    elif by_reason:
        print_reasons(count_reasons(rejects))
    else:
        for row in public_rows(rejects):
            print_text(one_line(f"{row['rel_path']}: {row['error_class']}: {row['error']}"))


def public_rows(rejects: pa.Table) -> list[dict[str, Any]]:
    """Return rows without the secrets that addresses may hold."""
    rows: list[dict[str, Any]] = rejects.to_pylist()
    return [{key: redact_secrets(x) if isinstance(x, str) else x for key, x in row.items()} for row in rows]


def count_reasons(rejects: pa.Table) -> list[dict[str, Any]]:
    """Count rejects by stage and class, most frequent first, with the first reject of each as an example."""
    names = {
        "stage": "stage",
        "error_class": "error_class",
        "rel_path_count": "count",
        "transient_any": "transient",
        "rel_path_first": "example",
        "error_first": "error",
    }
    return public_rows(group_rejects(rejects).select(list(names)).rename_columns(list(names.values())))


def print_reasons(reasons: list[dict[str, Any]]) -> None:
    """Print the result of `count_reasons` as a table that says how each class is retried."""
    rows = []
    for row in reasons:
        flag = "--accept-damaged" if row["error_class"] == DAMAGED_IMAGE else "--retry-failed"
        retry = "next run" if row["transient"] else f"{flag} or new file"
        rows.append([row["stage"], row["error_class"], f"{row['count']:,}", retry, row["example"], row["error"]])
    print_table(["stage", "class", "images", "retry by", "example", "reason"], rows)
