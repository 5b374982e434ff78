"""Code of users for networks that a Python module defines: read in the driver, shipped to the workers as bytes."""

import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imagemill.models.code_permission import code_permitted, permit_code
from imagemill.pipeline.errors import ConfigError

INSTALLED = "installed"
"""The value of `code` that permits code of installed packages."""
KEEP_SECONDS = 30 * 86400
MAX_BYTES, MAX_FILE_BYTES, MAX_FILES = 10_000_000, 100_000, 5_000
"""Limits of the shipped code: all files, one file that is not Python code, and the number of files."""


@dataclass(frozen=True)
class UserCode:
    """Code that may be imported.

    Attributes:
        files: relative path and content of each file; None for code that is installed.
        sha256: digest of the files.
    """

    files: tuple[tuple[str, bytes], ...] | None = None
    sha256: str | None = None

    def permit(self) -> None:
        """Permit the import of this code until the process ends, and put shipped code on the module path."""
        permit_code(None if self.files is None else str(self.unpack()))

    def unpack(self) -> Path:
        """Write shipped code to a folder of this user that its digest names, and return the folder.

        Processes and runs with the same code share the folder. Files that are missing or differ are written again. Folders
        that no process has asked for in a month are deleted.
        """
        delete_old_folders(private_folder())
        folder = private_folder() / f"imagemill-code-{str(self.sha256)[:32]}"
        for name, content in self.files or ():
            path = folder / name
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
                temporary.write_bytes(content)
                temporary.replace(path)
        os.utime(folder)
        return folder


def delete_old_folders(place: Path) -> None:
    """Delete the folders of code that no process has asked for in a month."""
    for folder in place.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def private_folder() -> Path:
    """Return a folder for temporary files that only this user can write to.

    Raises:
        ConfigError: when another user has created a folder of the same name.
    """
    folder = Path(tempfile.gettempdir(), f"imagemill-code-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise ConfigError(f"code: {folder} can be changed by other users. Delete it, or set TMPDIR")
    return folder.resolve()


def read_user_code(value: str | None) -> UserCode | None:
    """Read the code that the key `code` names.

    Args:
        value: "installed", or a folder, in the current folder or on the module path; None permits no code.

    Raises:
        ConfigError: when there is no such folder, or it holds too much.
    """
    if value is None:
        return None
    if value == INSTALLED:
        return UserCode()
    places = [Path(value), *(Path(entry, value) for entry in sys.path if entry and not os.path.isabs(value))]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        advice = "Give the folder that holds the file" if Path(value).is_file() else f"Give a folder, or {INSTALLED}"
        raise ConfigError(f"code={value!r}: is not a folder. {advice}")
    files, total = [], 0
    for path in code_files(folder):
        content = path.read_bytes()
        files.append((path.relative_to(folder).as_posix(), content))
        total += len(content)
        if total > MAX_BYTES or len(files) > MAX_FILES:
            raise ConfigError(
                f"code={value!r}: holds more than {MAX_BYTES / 1e6:.0f} MB or {MAX_FILES:,} files of code. Give a folder "
                "that holds only the code of the network"
            )
    if not any(name.endswith(".py") for name, _ in files):
        raise ConfigError(f"code={value!r}: holds no Python files. Give the folder that holds the module of the network")
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return UserCode(tuple(files), digest.hexdigest())


def code_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are shipped: Python code and other small files, but no hidden ones or caches."""
    for root, folders, names in os.walk(folder):
        is_environment = [name for name in folders if Path(root, name, "pyvenv.cfg").exists()]
        folders[:] = sorted(
            name for name in folders if name != "__pycache__" and not name.startswith(".") and name not in is_environment
        )
        for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            is_small = path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
            if path.suffix == ".py" or (is_small and path.suffix != ".pyc"):
                yield path


@contextmanager
def permitted(code: UserCode | None) -> Iterator[None]:
    """Permit the import of code in a `with` block, and put shipped code on the module path; None permits nothing."""
    if code is None:
        yield
    else:
        with code_permitted(None if code.files is None else str(code.unpack())):
            yield
