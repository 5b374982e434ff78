"""List a store: the entries of a listing, and the files below a local folder."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from imagemill.pipeline.errors import StorageError

NOT_A_FILE = "a pipe, socket or device, not a file"


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    size: int
    etag: str
    """The store's etag, or size and mtime in nanoseconds on a local disk."""
    problem: str | None = None
    """Why the object cannot be read."""


def local_etag(status: os.stat_result) -> str:
    """Return the etag of a local file: its size and modification time in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def local_files(root: str, base: str, may_skip: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Yield every file below a folder in order, files behind links last, and enter no folder twice.

    Broken links, unreadable files and special files are listed with their problem. Files that disappear during the listing
    are left out. fsspec's `find` is not used: it leaves out linked files and fails if a file disappears.

    Args:
        root: the folder.
        base: the folder that contains `root`, or `root` itself; paths are relative to this folder.
        may_skip: decides by the path below `root` whether a folder may be unreadable. Such a folder is listed with its
            problem, and links in it are not followed.

    Raises:
        StorageError: when any other folder cannot be read, because its files would be missing unnoticed.
    """
    unread: list[Entry] = []
    base_length = len(base.rstrip("/")) + 1

    def is_skippable(path: str) -> bool:
        return may_skip is not None and may_skip(os.path.relpath(path, root))

    def refuse(error: OSError) -> None:
        if is_skippable(str(error.filename)):
            unread.append(Entry(os.path.join(error.filename, "")[base_length:], 0, "unreadable", str(error.strerror)))
        elif not isinstance(error, FileNotFoundError):
            advice = ". Give this user permission to read and enter the folder, or move the folder away"
            advice = advice if isinstance(error, PermissionError) else ""
            raise StorageError(f"{error.filename}: cannot be listed: {error.strerror}{advice}") from None

    entered_folders: set[str] = set()
    # Real folders come first, so that a new link to a folder does not give its files other names.
    roots = deque([root])
    while roots:
        for folder, folders, names in os.walk(roots.popleft(), onerror=refuse):
            real = os.path.realpath(folder)
            if real in entered_folders:
                folders.clear()
                continue
            entered_folders.add(real)
            folders.sort()
            links = filter(os.path.islink, (os.path.join(folder, name) for name in folders))
            roots += (link for link in links if not is_skippable(link))
            prefix = os.path.join(folder, "")
            relative_prefix = prefix[base_length:]
            for name in sorted(names):
                try:
                    status = os.stat(prefix + name)
                except OSError as e:
                    if not isinstance(e, FileNotFoundError) or os.path.lexists(prefix + name):
                        problem = f"a broken link or unreadable file: {e.strerror}"
                        yield Entry(relative_prefix + name, 0, "unreadable", problem)
                    continue
                is_regular = stat.S_ISREG(status.st_mode)
                yield Entry(relative_prefix + name, status.st_size, local_etag(status), None if is_regular else NOT_A_FILE)
        yield from unread
        unread.clear()


def without_markers(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the objects of a bucket, empty ones last, without folder markers such as `a` (0 bytes) next to `a/b.png`."""
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
