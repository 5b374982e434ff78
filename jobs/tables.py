"""Tables that a command leaves in a file, by its name's ending."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import ConfigError

FORMATS = (".csv", ".jsonl", ".parquet")


def check_format(path: str | None) -> None:
    """Raises: ConfigError for a file of another kind."""
    if path and not path.endswith(FORMATS):
        raise ConfigError(f"--export {path}: one of {', '.join(FORMATS)} is expected")


def write(table: pa.Table, path: str) -> None:
    if path.endswith(".parquet"):
        pq.write_table(table, path)
    elif path.endswith(".csv"):
        pyarrow.csv.write_csv(table, path)
    else:
        Path(path).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()))
