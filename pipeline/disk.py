"""Files on a local disk: written atomically, created at most once, and dated by the clock of the disk."""

import errno
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("imagemill.storage")
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR)
"""Errors of file systems that cannot sync, or cannot sync folders."""
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""Names of temporary files. `sweep` removes those that a killed process left."""


@contextmanager
def temporary_in(folder: Path, ending: str = "") -> Iterator[Path]:
    """Yield a new temporary name (TEMPORARY) in a folder, and remove a file of that name at the end.

    Args:
        folder: an existing folder.
        ending: hexadecimal digits at the end of the name.
    """
    digits = secrets.token_hex(8)[: 16 - len(ending)]
    temporary = folder / f".{digits}{ending}.tmp"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write(target: Path, data: bytes, durable: bool) -> None:
    """Write a file under a temporary name and rename it, so that no reader sees an incomplete file.

    Args:
        target: path of the file; its folder is created.
        data: content.
        durable: wait until the file is on the disk, not only in a cache.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_in(target.parent) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                sync(file.fileno())
        move_over(temporary, target)
        if durable:
            sync_folder(target.parent)


def create(target: Path, data: bytes) -> bool:
    """Write a file if no file has this name. Return False if one has."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_in(target.parent) as temporary:
        temporary.write_bytes(data)
        return link_new(temporary, target, data)


def age(path: Path) -> float:
    """Return the seconds since a file was written, by the clock of its disk; on a network disk, by the server's clock.

    The modification time of a new file shows the time of that clock.
    """
    with temporary_in(path.parent) as probe:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime


def folds_case(root: Path) -> bool:
    """Return whether names that differ only in case name one file in a folder that exists or will be created."""
    place = next(folder for folder in (root, *root.parents) if folder.is_dir())
    with temporary_in(place, ending="ab") as probe:
        try:
            probe.touch()
            return probe.with_name(probe.name.upper()).exists()
        except OSError:
            return False  # The next write fails for the same reason, with a message.


def sweep(root: str, spare: str) -> None:
    """Remove the temporary files below `root`, except those in the folder `spare`."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if f"{folder}/{name}" != spare]
        for name in filter(TEMPORARY.fullmatch, names):
            Path(folder, name).unlink(missing_ok=True)


def sync(file: int) -> None:
    """Wait until a file or folder is on the disk, if its file system supports that."""
    try:
        os.fsync(file)
    except OSError as e:
        if e.errno not in NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a power cut could lose the name of a file whose data is stored."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError as e:
        if e.errno in NO_SYNC:
            return
        raise
    try:
        sync(opened)
    finally:
        os.close(opened)


def move_over(temporary: Path, target: Path) -> None:
    """Rename a file, and replace any file of the new name."""
    try:
        temporary.replace(target)
    except FileExistsError:
        # Only file systems that cannot rename over a file raise this. For a moment no file has the name.
        target.unlink()
        temporary.replace(target)


def link_new(temporary: Path, target: Path, data: bytes) -> bool:
    """Rename a written file if no file has the new name. Return False if one has.

    On file systems without hard links (exFAT, many FUSE file systems) the file is created exclusively and then written: only
    one writer succeeds, but a reader may see an incomplete file.
    """
    try:
        target.hardlink_to(temporary)
        return True
    except FileExistsError:
        # NFS repeats a request whose answer was lost, and then meets the link that it made.
        return target.exists() and target.samefile(temporary)
    except OSError as no_link:
        log.debug("%s: no hard link (%s): created exclusively", target, no_link)
    try:
        file = target.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(data)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True
