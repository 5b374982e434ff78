"""Tables that a command leaves in a file, by its name's ending."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import ConfigError

FORMATS = (".csv", ".jsonl", ".parquet")


def check_format(path: str | None) -> None:
    """Raises: ConfigError for a file of another kind, or one that cannot be."""
    if path and not path.endswith(FORMATS):
        raise ConfigError(f"--export {path}: one of {', '.join(FORMATS)} is expected")
    check_target(path)


def check_target(path: str | None) -> None:
    """Before the work that fills a file. Raises: ConfigError when it has no folder, or is one."""
    if path and not Path(path).parent.is_dir():
        raise ConfigError(f"{path}: folder {Path(path).parent} does not exist: make it")
    if path and Path(path).is_dir():
        raise ConfigError(f"{path} is a folder: give a file")


def write(table: pa.Table, path: str) -> None:
    if path.endswith(".parquet"):
        pq.write_table(table, path)
    elif path.endswith(".csv"):
        pyarrow.csv.write_csv(table, path)
    else:
        Path(path).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()))
