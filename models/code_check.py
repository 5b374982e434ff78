"""Check that the code of a network can and may be imported: libraries, and code of users. Nothing here imports it."""

import hashlib
import importlib.util
import os
from collections.abc import Iterator

from imagemill.models.card import Card
from imagemill.models.code_permission import permission, user_module_path
from imagemill.models.errors import CheckpointError

LIBRARIES = ("diffusers", "spandrel")
"""Routes whose networks a library of the same name defines, which is also an extra of imagemill."""


def check_code(card: Card) -> None:
    """Check that the library of a network is installed, or that code of a user may be imported and has not changed.

    Raises:
        CheckpointError: when the code cannot or must not be used.
    """
    if card.route in LIBRARIES and importlib.util.find_spec(card.route) is None:
        raise CheckpointError(
            f"checkpoint {card.name}: needs the library {card.route}. Run: pip install 'imagemill[{card.route}]'"
        )
    if card.route == "python":
        check_user_code(card)


def check_user_code(card: Card) -> None:
    """Check that the code of a card may be imported, exists, and is that of the import of the checkpoint.

    Raises:
        CheckpointError: when it must not be used.
    """
    package = card.architecture.partition(":")[0].partition(".")[0]
    if not permission.is_given:
        raise CheckpointError(
            f"checkpoint {card.name}: runs the Python code {card.architecture}. To allow this, pass --code FOLDER (code: in "
            f"YAML) with the folder that holds {package}, or --code installed if {package} is installed"
        )
    if source_digest(card.architecture) != card.code_sha256:
        raise CheckpointError(
            f"checkpoint {card.name}: the code of {card.architecture} has changed since the checkpoint was imported. "
            "Run `imagemill models import` again"
        )


def source_digest(architecture: str) -> str:
    """Return the SHA-256 of the code of MODULE:CLASS: of all Python files of its package, or of a module without a package.

    The digest of a module without a package does not cover other modules that it imports.

    Raises:
        CheckpointError: when there is no such module, or it has no source files.
    """
    module = architecture.partition(":")[0]
    package = module.partition(".")[0]
    with user_module_path():
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
    if spec is None:
        place = f"in {permission.folder}" if permission.folder else "among the installed packages"
        raise CheckpointError(
            f"architecture {architecture}: there is no module {package!r} {place}. Pass --code FOLDER with the folder that "
            "holds the module"
        )
    folders = list(spec.submodule_search_locations or [])
    files = {os.path.relpath(path, folder): path for folder in folders for path in python_files(folder)}
    if not folders and spec.origin and spec.origin.endswith(".py"):
        files = {os.path.basename(spec.origin): spec.origin}
    if not files:
        raise CheckpointError(f"architecture {architecture}: {package} has no source files, so a change would go unnoticed")
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        with open(path, "rb") as file:
            digest.update(f"{name}\0{hashlib.sha256(file.read()).hexdigest()}\n".encode())
    return digest.hexdigest()


def python_files(folder: str) -> Iterator[str]:
    """Yield the paths of all Python files below a folder."""
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names if name.endswith(".py"))
