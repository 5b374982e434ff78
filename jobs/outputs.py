"""An OUTPUT that a command reads: checked to be one, and its newest rows."""

from typing import Any

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.exports import MANIFEST, UNFINISHED
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

FOLDERS = ("runs", "results", "rejects")
"""Of an OUTPUT: one of them at least is there."""


def check_exists(output: Store, or_export: bool = False) -> None:
    """Raises: StorageError when no OUTPUT is there; ConfigError for an export, where the command does not read one."""
    try:
        # An export has the folder of a lease as an OUTPUT has.
        if output.exists(MANIFEST) or output.exists(UNFINISHED):
            if or_export:
                return
            raise ConfigError(f"{output.url} is an export; give the OUTPUT it was made of")
        if any(output.exists(folder) for folder in FOLDERS):
            return
        there = output.exists()
    except STORE_FAILURES as e:
        raise StorageError(f"{output.url}: {reason(e)}") from None
    held = "holds no output of imagemill: no results/, rejects/ or runs/" if there else "does not exist"
    raise StorageError(f"{output.url} {held}")


def rows_of(output: Store, columns: list[str]) -> dict[str, dict[str, Any]]:
    """The newest row of each image of an OUTPUT, with its output_uri and these columns, by its source's relative path."""
    rows = (row for table in read_snapshot(output).tables(["rel_path", "output_uri", *columns]) for row in table.to_pylist())
    return {row["rel_path"]: row for row in rows}
