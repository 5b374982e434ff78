"""The permission to import code of users. Without it, a checkpoint whose network is a Python module is refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from imagemill.models.errors import CheckpointError


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


@contextmanager
def code_permitted(folder: str | None = None) -> Iterator[None]:
    """Permit the import of user code in a `with` block.

    The folder comes before installed packages on the module path, as for a script in this folder. At the end of the block,
    modules from the folder are forgotten, because another folder may have other modules of the same names.

    Args:
        folder: absolute path of the folder that holds the code; None permits only code that is installed.
    """
    before = permission.is_given, permission.folder
    permission.is_given, permission.folder = True, folder
    if folder:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        permission.is_given, permission.folder = before
        if folder:
            sys.path.remove(folder)
            for name in [name for name, module in sys.modules.items() if is_inside(module, folder)]:
                del sys.modules[name]


def is_inside(module: ModuleType, folder: str) -> bool:
    """Return whether a module was imported from a folder."""
    file = getattr(module, "__file__", None)
    # A package without __init__.py has no file.
    paths = [file] if file else list(getattr(module, "__path__", []))
    return any(str(path).startswith(f"{folder}/") for path in paths)


def check_permission(name: str, architecture: str) -> None:
    """Raise CheckpointError if the code of a checkpoint must not be imported.

    Args:
        name: name of the checkpoint.
        architecture: its MODULE:CLASS.
    """
    if not permission.is_given:
        package = architecture.partition(":")[0].partition(".")[0]
        raise CheckpointError(
            f"checkpoint {name}: runs the Python code {architecture}. To allow this, pass --code FOLDER (code: in YAML) "
            f"with the folder that holds {package}, or --code installed if {package} is installed"
        )
