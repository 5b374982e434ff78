"""The permission to import code of users. Without it, a checkpoint whose network is a Python module is refused."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType


@dataclass
class CodePermission:
    """What this process may import for networks that users define.

    Attributes:
        is_given: whether their code may be imported at all.
        folder: the folder that holds the code; None for code that is installed.
    """

    is_given: bool = False
    folder: str | None = None


permission = CodePermission()
"""The permission of this process."""


def permit_code(folder: str | None) -> None:
    """Permit the import of user code until this process ends.

    The folder comes before installed packages on the module path, as for a script in this folder.

    Args:
        folder: absolute path of the folder that holds the code; None permits only code that is installed.
    """
    permission.is_given, permission.folder = True, folder
    if folder:
        if folder not in sys.path:
            sys.path.insert(0, folder)
        importlib.invalidate_caches()


@contextmanager
def code_permitted(folder: str | None = None) -> Iterator[None]:
    """Permit the import of user code in a `with` block, like `permit_code`.

    At the end of the block, modules from the folder are forgotten, because another folder may have other modules of the same
    names.
    """
    before, path = (permission.is_given, permission.folder), list(sys.path)
    permit_code(folder)
    try:
        yield
    finally:
        permission.is_given, permission.folder = before
        sys.path[:] = path
        for name in [name for name, module in sys.modules.items() if folder and is_inside(module, folder)]:
            del sys.modules[name]


def is_inside(module: ModuleType, folder: str) -> bool:
    """Return whether a module was imported from a folder."""
    file = getattr(module, "__file__", None)
    # A package without __init__.py has no file.
    paths = [file] if file else list(getattr(module, "__path__", []))
    return any(str(path).startswith(f"{folder}/") for path in paths)


@contextmanager
def user_module_path() -> Iterator[None]:
    """Search modules of users in a `with` block.

    The permission for installed code does not cover files that happen to be in the current folder.
    """
    path = list(sys.path)
    if not permission.folder:
        sys.path[:] = [entry for entry in path if entry not in ("", os.getcwd())]
    try:
        yield
    finally:
        sys.path[:] = path
