"""Check that an output exists before a command reads it, and read its newest rows."""

from typing import Any

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.exports import MANIFEST, UNFINISHED
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

FOLDERS = ("runs", "results", "rejects")
"""Every output has at least one of these folders."""


def check_output(output: Store, allow_export: bool = False) -> None:
    """Check that a location holds an output of imagemill.

    Args:
        output: the location to check.
        allow_export: accept an export too.

    Raises:
        StorageError: when the location holds no output.
        ConfigError: when the location holds an export and the command cannot read one.
    """
    try:
        # Exports come first: the lease of an export lies in runs/ too.
        if output.exists(MANIFEST) or output.exists(UNFINISHED):
            if allow_export:
                return
            raise ConfigError(f"{output.url}: is an export. Give the output that it was made from.")
        if any(output.exists(folder) for folder in FOLDERS):
            return
        problem = "does not exist. Check the path"
        if output.exists():
            problem = "is not an output of imagemill: no results/, rejects/ or runs/. Give the OUTPUT of a run"
    except store_failures() as e:
        raise StorageError(f"{output.url}: {reason(e)}") from None
    raise StorageError(f"{output.url}: {problem}")


def read_newest_rows(output: Store, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Return the newest row of each image, by its rel_path; each row has rel_path, output_uri and `columns`."""
    tables = read_snapshot(output).tables(["rel_path", "output_uri", *columns])
    return {row["rel_path"]: row for table in tables for row in table.to_pylist()}
