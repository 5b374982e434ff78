"""Tables that a command leaves in a file, by its name's ending."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from imagemill.jobs.target import Target, target_of
from imagemill.pipeline.errors import ConfigError

FORMATS = (".csv", ".jsonl", ".parquet")


def table_target(path: str | None, overwrite: bool) -> Target | None:
    """Where a table is to go. Raises: ConfigError for a file of another kind, or one that cannot be; as `Target`."""
    if path and not path.endswith(FORMATS):
        raise ConfigError(f"--export {path}: one of {', '.join(FORMATS)} is expected")
    return target_of(path, overwrite)


def encoded(table: pa.Table, path: str) -> bytes:
    """A table as a file of this name holds it."""
    if path.endswith(".jsonl"):
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()).encode()
    out = pa.BufferOutputStream()
    if path.endswith(".parquet"):
        pq.write_table(table, out)
    else:
        pyarrow.csv.write_csv(table, out)
    data: bytes = out.getvalue().to_pybytes()
    return data
