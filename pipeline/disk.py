"""Files on a local disk: whole from the first moment on, created once, by the clock of the disk."""

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
"""What file systems answer that have nothing to bring to a disk, or cannot do it for folders."""
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""Names of files that have no content or no name yet. `sweep` removes those that a killed process left."""


@contextmanager
def temporary_in(folder: Path, ending: str = "") -> Iterator[Path]:
    """Yield a new name of the form of TEMPORARY in a folder, and remove a file of that name at the end.

    Args: ending: hexadecimal digits that the name has last.
    """
    digits = secrets.token_hex(8)[: 16 - len(ending)]
    temporary = folder / f".{digits}{ending}.tmp"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write(target: Path, data: bytes, durable: bool) -> None:
    """Write a file under a temporary name, and rename it: no reader sees a part of it.

    Args: durable: on the disk itself, not in its cache alone, when this returns.
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
    """Write a file where none is; False where one is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_in(target.parent) as temporary:
        temporary.write_bytes(data)
        return link_new(temporary, target, data)


def age(path: Path) -> float:
    """Return the seconds since a file was written, by the clock of its disk, which on a network is the server's.

    A new file shows what that clock says.
    """
    with temporary_in(path.parent) as probe:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime


def folds_case(root: Path) -> bool:
    """Return whether two names that differ in case name one file in a folder, or where it is going to be."""
    place = next(folder for folder in (root, *root.parents) if folder.is_dir())
    with temporary_in(place, ending="ab") as probe:
        try:
            probe.touch()
            return probe.with_name(probe.name.upper()).exists()
        except OSError:
            return False  # what is written next says why


def sweep(root: str, spare: str) -> None:
    """Remove the temporary files below `root`, but none in the folder `spare`."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if f"{folder}/{name}" != spare]
        for name in filter(TEMPORARY.fullmatch, names):
            Path(folder, name).unlink(missing_ok=True)


def sync(file: int) -> None:
    """Wait until a file or a folder is on the disk itself, where its file system can do that."""
    try:
        os.fsync(file)
    except OSError as e:
        if e.errno not in NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """The names in a folder on the disk itself: a file that is there may not be after a power cut, while its data is."""
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
    """Give a file its name, in the place of the file that has it."""
    try:
        temporary.replace(target)
    except FileExistsError:
        # Only a file system that cannot rename over a file says so. For a moment there is no file of that name.
        target.unlink()
        temporary.replace(target)


def link_new(temporary: Path, target: Path, data: bytes) -> bool:
    """Give a written file its name, whole from the first moment on, if no file has it; False when one does.

    Where hard links do not exist (exFAT, many FUSE file systems) a file of that name is created, and then written: no two
    writers get it, but a reader may see a part of its content.
    """
    try:
        target.hardlink_to(temporary)
        return True
    except FileExistsError:
        # NFS repeats a request whose answer was lost, and then finds the link that it made.
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
