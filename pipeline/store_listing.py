"""List a store: the entries of a listing, and the files below a local folder."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from imagemill.pipeline.errors import StorageError

FOLDERS_AT_ONCE = 16
"""Folders of a bucket that are listed in parallel."""
NOT_A_FILE = "a pipe, socket or device, not a file"


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    """Path in the store. A slash at the end marks a folder that was skipped or, with a problem, that cannot be listed."""
    size: int
    etag: str
    """The store's etag, or size and mtime in nanoseconds on a local disk."""
    problem: str | None = None
    """Why the object cannot be read."""
    is_link: bool = False
    """Whether an object with a problem is a link, whose target may be a folder."""


def local_etag(status: os.stat_result) -> str:
    """Return the etag of a local file: its size and modification time in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def folder_entry(path: str, problem: str | None = None) -> Entry:
    """Return the entry of a folder whose content is not listed."""
    return Entry(f"{path}/", 0, "unreadable" if problem else "skipped", problem)


def local_files(root: str, base: str, skips: Callable[[str], bool] | None = None) -> Iterator[Entry]:
    """Yield every file below a folder in order, files behind links last, and enter no folder twice.

    Broken links, unreadable files and special files are listed with their problem. Files that disappear during the listing
    are left out. fsspec's `find` is not used: it leaves out linked files and fails if a file disappears.

    Args:
        root: the folder.
        base: the folder that contains `root`, or `root` itself; paths are relative to this folder.
        skips: decides by the path below `root` whether a folder is skipped. If given, folders that are skipped or cannot be
            read are listed as folders (folder_entry).

    Raises:
        StorageError: when `root` cannot be read, or, without `skips`, any folder, because its files would be missing
            unnoticed.
    """
    unlisted: list[Entry] = []
    base_length = len(base.rstrip("/")) + 1

    def is_skipped(path: str) -> bool:
        if skips is None or not skips(os.path.relpath(path, root)):
            return False
        unlisted.append(folder_entry(path[base_length:]))
        return True

    def report_unreadable(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            return
        advice = ". Give this user permission to read and enter the folder, or move the folder away"
        advice = advice if isinstance(error, PermissionError) else ""
        problem = f"cannot be listed: {error.strerror}{advice}"
        if skips is None or error.filename == root:
            raise StorageError(f"{error.filename}: {problem}") from None
        unlisted.append(folder_entry(error.filename[base_length:], problem))

    entered_folders: set[str] = set()
    # Real folders come first, so that a new link to a folder does not give its files other names.
    roots = deque([root])
    while roots:
        for folder, folders, names in os.walk(roots.popleft(), onerror=report_unreadable):
            real = os.path.realpath(folder)
            if real in entered_folders:
                folders.clear()
                continue
            entered_folders.add(real)
            prefix = os.path.join(folder, "")
            folders[:] = sorted(name for name in folders if not is_skipped(prefix + name))
            roots += (prefix + name for name in folders if os.path.islink(prefix + name))
            relative_prefix = prefix[base_length:]
            for name in sorted(names):
                try:
                    status = os.stat(prefix + name)
                except OSError as e:
                    if not isinstance(e, FileNotFoundError) or os.path.lexists(prefix + name):
                        problem = f"a broken link or unreadable file: {e.strerror}"
                        yield Entry(relative_prefix + name, 0, "unreadable", problem, os.path.islink(prefix + name))
                    continue
                is_regular = stat.S_ISREG(status.st_mode)
                yield Entry(relative_prefix + name, status.st_size, local_etag(status), None if is_regular else NOT_A_FILE)
        yield from unlisted
        unlisted.clear()


def bucket_files(
    root: str,
    base: str,
    ls: Callable[[str], list[dict[str, Any]]],
    find: Callable[[str], Iterable[dict[str, Any]]],
    skips: Callable[[str], bool] | None = None,
) -> Iterator[Entry]:
    """Yield every object below a folder of a bucket.

    The folders directly below `root` are listed in parallel, because each page takes a round trip. Only these folders can be
    skipped: deeper ones are not known before their objects are listed.

    Args:
        root: the folder.
        base: the folder that contains `root`, or `root` itself; paths are relative to this folder.
        ls: lists the objects and folders directly in a folder, like s3fs.
        find: lists all objects below a folder, like s3fs.
        skips: decides by the path below `root` whether a folder is skipped, and listed as a folder (folder_entry).
    """
    base_length, root_length = (len(folder.rstrip("/")) + 1 for folder in (base, root))

    def list_below(folder: str) -> Iterator[Entry]:
        infos = ls(folder)
        folders = [info["name"] for info in infos if info["type"] == "directory"]
        if any(name.endswith("/") for name in folders):
            # A folder without a name (`a//b.jpg`): s3fs would strip the slash and list the parent folder.
            yield from object_entries(find(folder), base_length)
            return
        skipped = {name for name in folders if skips and skips(name[root_length:])}
        yield from (folder_entry(name[base_length:]) for name in folders if name in skipped)
        folders = [name for name in folders if name not in skipped]
        files = object_entries(infos, base_length)
        if len(folders) == 1 and not files:
            yield from list_below(folders[0])
            return
        yield from files
        with ThreadPoolExecutor(FOLDERS_AT_ONCE) as pool:
            for objects in pool.map(find, folders):
                yield from object_entries(objects, base_length)

    yield from list_below(root)


def object_entries(infos: Iterable[dict[str, Any]], base_length: int) -> list[Entry]:
    """Return the objects among the answers of s3fs, without folders and the markers that consoles create for folders."""
    files = (info for info in infos if info["type"] == "file" and not info["name"].endswith("/"))
    return [Entry(info["name"][base_length:], int(info["size"]), info["ETag"].strip('"')) for info in files]


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
