"""Write a table, page or picture to a local file, and never replace a file that imagemill did not write."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.storage import Store

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")


class ResultFile:
    """A file that a command writes when its work is done, and checks before.

    Args:
        path: the file.
        overwrite: replace a file that imagemill did not write.

    Raises:
        ConfigError: when the folder does not exist, the path is a folder, or imagemill did not write the existing file.
    """

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = path
        parent, name = Path(path).parent, Path(path).name
        if not parent.is_dir():
            raise ConfigError(f"{path}: folder {parent} does not exist. Create it first.")
        if Path(path).is_dir():
            raise ConfigError(f"{path}: is a folder. Give the name of a file.")
        self._name, self._written = name, FileRecord(Store(str(parent)), overwrite)
        self._written.check([self._name])

    def write(self, data: bytes) -> None:
        """Write the file. Raises OSError."""
        with self._written:
            self._written.announce([self._name])
            self._written.write(self._name, data)


def result_file(path: str | None, overwrite: bool) -> ResultFile | None:
    """Return the file of an option, or None when the option is absent. Raises the errors of ResultFile."""
    return ResultFile(path, overwrite) if path else None


def table_file(path: str | None, overwrite: bool) -> ResultFile | None:
    """Return the file of the option `--export`, or None when the option is absent.

    Raises:
        ConfigError: when the extension is not one of TABLE_SUFFIXES, and the errors of ResultFile.
    """
    if path and not path.endswith(TABLE_SUFFIXES):
        raise ConfigError(f"--export {path}: unknown extension. Use one of {', '.join(TABLE_SUFFIXES)}")
    return result_file(path, overwrite)


def encode_table(table: pa.Table, path: str) -> bytes:
    """Encode a table as CSV, JSON lines or Parquet, by the extension of a path."""
    if path.endswith(".jsonl"):
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()).encode()
    out = pa.BufferOutputStream()
    if path.endswith(".parquet"):
        pq.write_table(table, out)
    else:
        pyarrow.csv.write_csv(table, out)
    data: bytes = out.getvalue().to_pybytes()
    return data
