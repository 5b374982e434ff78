"""What lies in a place: one object of a listing, and the files below a folder."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from imagemill.pipeline.errors import StorageError

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


def local_files(root: str, may_skip: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Every file below a folder, in order, those behind links last; no folder is entered twice.

    Not fsspec's `find`: it leaves out linked files, and ends in an error when a file goes away while it lists. Files that
    do are left out; a link that leads nowhere, what may not be looked at and what is no regular file is listed with its
    problem.

    Args: may_skip: folders, by their path below `root`, that nobody misses: one that cannot be read is listed with its
        problem, as a file would be, and links in it are not followed.

    Raises: StorageError when another folder cannot be read: nobody knows how many files that are.
    """
    unread: list[Entry] = []

    def skipped(path: str) -> bool:
        return may_skip is not None and may_skip(os.path.relpath(path, root))

    def refuse(error: OSError) -> None:
        if skipped(str(error.filename)):
            unread.append(Entry(os.path.join(error.filename, ""), 0, "unreadable", str(error.strerror)))
        elif not isinstance(error, FileNotFoundError):
            mend = "give this user the right to read and enter it, or move it away"
            what = f"{error.strerror}: {mend}" if isinstance(error, PermissionError) else error.strerror
            raise StorageError(f"{error.filename}: cannot be listed: {what}") from None

    entered: set[str] = set()
    # What is really there first: a new link that leads to it must not give its files other names.
    roots = deque([root])
    while roots:
        for folder, folders, names in os.walk(roots.popleft(), onerror=refuse):
            real = os.path.realpath(folder)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders.sort()
            links = filter(os.path.islink, (os.path.join(folder, name) for name in folders))
            roots += (link for link in links if not skipped(link))
            for name in sorted(names):
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except OSError as e:
                    if not isinstance(e, FileNotFoundError) or os.path.lexists(path):
                        yield Entry(path, 0, "unreadable", f"a link or file that cannot be followed: {e.strerror}")
                    continue
                regular = stat.S_ISREG(status.st_mode)
                yield Entry(path, status.st_size, local_etag(status), None if regular else NO_FILE)
        yield from unread
        unread.clear()


def without_markers(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The objects of a bucket, empty ones last, without those that stand for a folder: `a` (0 bytes) next to `a/b.png`."""
    empty: list[Entry] = []
    folders = {""}
    for entry in entries:
        folder = os.path.dirname(entry.path)
        while folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
        if entry.size:
            yield entry
        else:
            empty.append(entry)
    yield from (entry for entry in empty if entry.path not in folders)
