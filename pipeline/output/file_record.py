"""The record of the files that commands write into a folder of the user, in its folder `.imagemill/`.

A command may replace a file that is still as the record says. All other files are the user's, and are never replaced.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.store_listing import Entry, local_etag

log = logging.getLogger("imagemill.written")
FOLDER = ".imagemill"
SUFFIX = ".arrow"
"""Suffix of the parts of the record. It is not one of a shard, because the folder may later be an INPUT."""
SCHEMA = pa.schema([("name", pa.string()), ("etag", pa.string()), ("sha256", pa.string())])
"""One row per file. The etag and digest of a file that was announced and not yet written are empty."""
LISTED_FROM = 100
"""With this many names or more, a bucket is listed instead of looking up each name."""
THREADS = 16
MAX_NAMES_SHOWN = 3
"""Names in an error message."""


class FileRecord:
    """Writes files and records them: `with FileRecord(place) as record:`.

    Call `check(names)` first, then `announce(names)` and `write(name, data)`. A command that is killed leaves the names that
    it announced, so that it may replace those files when it is started again.

    Args:
        place: the folder of the user.
        overwrite: whether files of the user may be replaced. Written files are recorded in any case.
    """

    def __init__(self, place: Store, overwrite: bool = False) -> None:
        self.place, self.overwrite = place, overwrite
        self._part = ""
        self._own_parts: list[str] = []
        self._rows: dict[str, tuple[str, str]] = {}

    def check(self, names: Sequence[str]) -> None:
        """Check that files may be written, because they do not exist or are as the record says.

        Raises:
            ConfigError: when a file exists that imagemill did not write, or that was changed since.
            StorageError: when the place cannot be read.
        """
        if self.overwrite:
            return
        existing = self._existing(names)
        rows: dict[str, list[tuple[str, str]]] = {}
        if existing:
            paths = pa.array([entry.path for entry in existing], pa.string())
            record = self._record(self._parts())
            for row in record.filter(pc.is_in(record["name"], paths)).to_pylist():
                rows.setdefault(row["name"], []).append((row["etag"], row["sha256"]))
        changed = [entry for entry in existing if not any(etag in ("", entry.etag) for etag, _ in rows.get(entry.path, []))]
        with ThreadPoolExecutor(THREADS) as pool:
            is_recorded = list(pool.map(lambda entry: self._has_digest(entry, rows.get(entry.path, [])), changed))
        if foreign := [entry.path for entry, is_own in zip(changed, is_recorded, strict=True) if not is_own]:
            shown = ", ".join(map(self.place.uri, foreign[:MAX_NAMES_SHOWN]))
            more = f" and {len(foreign) - MAX_NAMES_SHOWN:,} more" if len(foreign) > MAX_NAMES_SHOWN else ""
            raise ConfigError(
                f"{shown}{more}: exists, and imagemill did not write it or it was changed since. "
                "Choose another location, or pass --overwrite to replace it"
            )

    def _existing(self, names: Sequence[str]) -> list[Entry]:
        """Return the files with these names that exist."""
        if self.place.local:
            return [entry for name in names if (entry := find_entry(self.place, name))]
        if len(names) < LISTED_FROM:
            with ThreadPoolExecutor(THREADS) as pool:
                return [entry for entry in pool.map(partial(find_entry, self.place), names) if entry]
        name_set = set(names)
        return [entry for entry in self.place.entries() if entry.path in name_set]

    def _has_digest(self, entry: Entry, rows: list[tuple[str, str]]) -> bool:
        """Return whether a file has a recorded digest, although its etag differs, like that of a copied file."""
        if entry.problem or not rows:
            return False
        return hashlib.sha256(self.place.read(entry.path)).hexdigest() in {sha256 for _, sha256 in rows}

    def announce(self, names: Sequence[str]) -> None:
        """Record that files are about to be written. Files announced before must be written by now."""
        self._record_rows()
        self._part = f"{FOLDER}/{secrets.token_hex(16)}{SUFFIX}"
        self._own_parts.append(self._part)
        empty = pa.array([""] * len(names), pa.string())
        self._write_part(self._part, pa.table([pa.array(names, pa.string()), empty, empty], schema=SCHEMA))

    def write(self, name: str, data: bytes) -> None:
        """Write an announced file. Several threads may call this."""
        self._rows[name] = "", ""
        self.place.write(name, data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest
        etag = local_etag(os.stat(self.place.full(name))) if self.place.local else md5()
        self._rows[name] = etag, hashlib.sha256(data).hexdigest()

    def _record_rows(self) -> None:
        if self._part:
            rows = [{"name": name, "etag": etag, "sha256": sha256} for name, (etag, sha256) in self._rows.items()]
            self._write_part(self._part, pa.Table.from_pylist(rows, SCHEMA))
        self._part, self._rows = "", {}

    def _write_part(self, path: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        self.place.write(path, sink.getvalue().to_pybytes())

    def _parts(self) -> list[str]:
        return [entry.path for entry in self.place.entries(FOLDER) if entry.path.endswith(SUFFIX)]

    def _record(self, parts: list[str]) -> pa.Table:
        tables = [SCHEMA.empty_table()]
        for path in parts:
            try:
                tables.append(pa.ipc.open_file(self.place.read(path)).read_all().select(SCHEMA.names).cast(SCHEMA))
            except FileNotFoundError:
                continue  # another command has just merged this part
            except (pa.ArrowException, KeyError, ValueError):
                log.warning("%s: damaged. The files that it names count as the user's", self.place.uri(path))
        return pa.concat_tables(tables)

    def _merge(self) -> None:
        """Merge the parts of the record into one. Files that were just written replace their earlier entries."""
        others = [path for path in self._parts() if path not in self._own_parts]
        if len(others) + len(self._own_parts) < 2:
            return
        own, before = self._record(self._own_parts), self._record(others)
        before = before.filter(pc.invert(pc.is_in(before["name"], own["name"].combine_chunks())))
        self._write_part(f"{FOLDER}/{secrets.token_hex(16)}{SUFFIX}", pa.concat_tables([before, own]))
        for path in (*others, *self._own_parts):
            self.place.delete(path)

    def __enter__(self) -> "FileRecord":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._record_rows()
        try:
            self._merge()
        except store_failures(StorageError) as e:
            log.warning("%s: the parts of the record were not merged: %s", self.place.uri(FOLDER), reason(e))


def find_entry(place: Store, name: str) -> Entry | None:
    """Return a file, or None if it does not exist.

    Raises:
        ConfigError: when the name is a folder.
        OSError: when an S3 store fails.
    """
    try:
        return place.entry(name)
    except IsADirectoryError:
        raise ConfigError(f"{place.uri(name)}: is a folder, but must be a file. Choose another location") from None
    except OSError as e:
        if not place.local:
            if isinstance(e, FileNotFoundError):
                return None
            raise
        # A broken link, a pipe or an unreadable file belongs to the user.
        return Entry(name, 0, "", reason(e)) if os.path.lexists(place.full(name)) else None
