"""What lies in a place: one object of a listing, and the files below a folder."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import StorageError

NO_FILE = "a pipe, socket or device, not a file"


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    size: int
    etag: str
    """The store's etag, or size and mtime in nanoseconds on a local disk."""
    problem: str | None = None
    """Why it cannot be read."""


def local_etag(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def local_files(root: str) -> Iterator[Entry]:
    """Every file below a folder, in order; links are followed, no folder is entered twice.

    Not fsspec's `find`: it leaves out linked files, and ends in an error when a file goes away while it lists. Files that
    do are left out; a link that leads nowhere, what may not be looked at and what is no regular file is listed with its
    problem.

    Raises: StorageError when a folder cannot be read: nobody knows how many files that are.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            mend = "give this user the right to read and enter it, or move it away"
            what = f"{error.strerror}: {mend}" if isinstance(error, PermissionError) else error.strerror
            raise StorageError(f"{error.filename}: cannot be listed: {what}") from None

    entered: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for name in sorted(names):
            path = f"{folder}/{name}"
            try:
                status = os.stat(path)
            except OSError as e:
                if not isinstance(e, FileNotFoundError) or os.path.lexists(path):
                    yield Entry(path, 0, "unreadable", f"a link or file that cannot be followed: {e.strerror}")
                continue
            regular = stat.S_ISREG(status.st_mode)
            yield Entry(path, status.st_size, local_etag(status), None if regular else NO_FILE)
