"""Files that a command writes into a place of the user, and the record of them that lies there: `.imagemill/`.

A file may be replaced when it is still what the record says was written under its name. All others are the user's.
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
from imagemill.pipeline.store_failures import STORE_FAILURES, reason
from imagemill.pipeline.store_listing import Entry, local_etag

log = logging.getLogger("imagemill.written")
FOLDER = ".imagemill"
SUFFIX = ".arrow"
"""No source takes a file of this ending for images: the place may be an INPUT later."""
SCHEMA = pa.schema([("name", pa.string()), ("etag", pa.string()), ("sha256", pa.string())])
"""A row for each file. The etag and digest of one that was about to be written are empty."""
LISTED_FROM = 100
"""Names from which on a bucket is listed, instead of asked for each of them."""
THREADS = 16
MAX_NAMES_SHOWN = 3


class FileRecord:
    """`with Written(place) as written:` first `check(names)`, then `announce(names)` and `write(name, data)`.

    A command that is killed leaves the names that it announced, and may replace those files when it is started again.
    """

    def __init__(self, place: Store, overwrite: bool = False) -> None:
        """Args: overwrite: whether files of the user may be replaced. What is written is recorded all the same."""
        self.place, self.overwrite = place, overwrite
        self._part = ""
        self._own_parts: list[str] = []
        self._rows: dict[str, tuple[str, str]] = {}

    def check(self, names: Sequence[str]) -> None:
        """Raises: ConfigError when a file of one of these names is there that is not what was written; StorageError."""
        if self.overwrite:
            return
        there = self._there(names)
        rows: dict[str, list[tuple[str, str]]] = {}
        if there:
            found = pa.array([entry.path for entry in there], pa.string())
            record = self._record(self._parts())
            for row in record.filter(pc.is_in(record["name"], found)).to_pylist():
                rows.setdefault(row["name"], []).append((row["etag"], row["sha256"]))
        changed = [entry for entry in there if not any(etag in ("", entry.etag) for etag, _ in rows.get(entry.path, []))]
        with ThreadPoolExecutor(THREADS) as pool:
            own = list(pool.map(lambda entry: self._has_digest(entry, rows.get(entry.path, [])), changed))
        if foreign := [entry.path for entry, is_own in zip(changed, own, strict=True) if not is_own]:
            shown = ", ".join(map(self.place.uri, foreign[:MAX_NAMES_SHOWN]))
            more = f" and {len(foreign) - MAX_NAMES_SHOWN:,} more" if len(foreign) > MAX_NAMES_SHOWN else ""
            raise ConfigError(
                f"{shown}{more}: exists, and imagemill did not write it or it was changed since. "
                "Give another place, or --overwrite to replace it"
            )

    def _there(self, names: Sequence[str]) -> list[Entry]:
        """Those of these files that exist."""
        if self.place.local:
            return [entry for name in names if (entry := find_entry(self.place, name))]
        if len(names) < LISTED_FROM:
            with ThreadPoolExecutor(THREADS) as pool:
                return [entry for entry in pool.map(partial(find_entry, self.place), names) if entry]
        wanted = set(names)
        return [entry for entry in self.place.entries() if entry.path in wanted]

    def _has_digest(self, entry: Entry, rows: list[tuple[str, str]]) -> bool:
        """Whether a file is what its rows say although its etag is not: it was copied, or the store's is no MD5."""
        if entry.problem or not rows:
            return False
        return hashlib.sha256(self.place.read(entry.path)).hexdigest() in {sha256 for _, sha256 in rows}

    def announce(self, names: Sequence[str]) -> None:
        """Record that these files are about to be written. What was announced before is written by now."""
        self._record_rows()
        self._part = f"{FOLDER}/{secrets.token_hex(16)}{SUFFIX}"
        self._own_parts.append(self._part)
        empty = pa.array([""] * len(names), pa.string())
        self._keep(self._part, pa.table([pa.array(names, pa.string()), empty, empty], schema=SCHEMA))

    def write(self, name: str, data: bytes) -> None:
        """Write a file that was announced; several threads may. Raises: as `Store.write`."""
        self._rows[name] = "", ""
        self.place.write(name, data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest
        etag = local_etag(os.stat(self.place.full(name))) if self.place.local else md5()
        self._rows[name] = etag, hashlib.sha256(data).hexdigest()

    def _record_rows(self) -> None:
        if self._part:
            rows = [{"name": name, "etag": etag, "sha256": sha256} for name, (etag, sha256) in self._rows.items()]
            self._keep(self._part, pa.Table.from_pylist(rows, SCHEMA))
        self._part, self._rows = "", {}

    def _keep(self, path: str, table: pa.Table) -> None:
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
                continue  # another command has just merged it
            except (pa.ArrowException, KeyError, ValueError):
                log.warning("%s: damaged: the files that it names count as the user's", self.place.uri(path))
        return pa.concat_tables(tables)

    def _merge(self) -> None:
        """One part in the place of several, without what was recorded earlier of files that were written now."""
        others = [path for path in self._parts() if path not in self._own_parts]
        if len(others) + len(self._own_parts) < 2:
            return
        own, before = self._record(self._own_parts), self._record(others)
        before = before.filter(pc.invert(pc.is_in(before["name"], own["name"].combine_chunks())))
        self._keep(f"{FOLDER}/{secrets.token_hex(16)}{SUFFIX}", pa.concat_tables([before, own]))
        for path in (*others, *self._own_parts):
            self.place.delete(path)

    def __enter__(self) -> "FileRecord":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._record_rows()
        try:
            self._merge()
        except (StorageError, *STORE_FAILURES) as e:
            log.warning("%s: its parts stay as they are for now: %s", self.place.uri(FOLDER), reason(e))


def find_entry(place: Store, name: str) -> Entry | None:
    """A file, None where there is none. Raises: ConfigError for a folder; as `Store.entry` on S3."""
    try:
        return place.entry(name)
    except IsADirectoryError:
        raise ConfigError(f"{place.uri(name)} is a folder, where a file is to be written: give another place") from None
    except OSError as e:
        if not place.local:
            if isinstance(e, FileNotFoundError):
                return None
            raise
        # A link that leads nowhere, a pipe, or what may not be looked at is somebody's.
        return Entry(name, 0, "", reason(e)) if os.path.lexists(place.full(name)) else None
