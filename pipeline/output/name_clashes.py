"""Sources whose names differ in case alone, where the file system of OUTPUT takes them for one name."""

import unicodedata
from collections.abc import Iterable

import pyarrow as pa

from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.storage import Store

CLASHES = "clashes"
"""Column of references: whether the output of an image is to be renamed."""


def fold_name(rel_path: str) -> str:
    """A path as such file systems compare it: equal for two names of one file."""
    parts = unicodedata.normalize("NFC", rel_path).casefold().split("/")
    return "/".join(part.rstrip(". ") for part in parts)


def find_clashes(rel_paths: Iterable[str]) -> set[str]:
    """Return those of different paths that such file systems take for another one among them."""
    groups: dict[str, set[str]] = {}
    for rel_path in rel_paths:
        groups.setdefault(fold_name(rel_path), set()).add(rel_path)
    return {rel_path for group in groups.values() if len(group) > 1 for rel_path in group}


def mark_clashes(output: Store, todo: pa.Table) -> pa.Table:
    """Mark the images of `todo` (schema.REFERENCE) whose output would replace that of another image of OUTPUT.

    All images of one name are marked, but an older row keeps its file. On S3 and most disks of Linux nothing is read and
    no column is added.

    Raises: StorageError, OSError.
    """
    if not output.folds_case():
        return todo
    names: dict[str, str] = {}
    for table in (read_parts(output, list_parts(output, "results"), ["image_id", "rel_path"]), todo):
        names |= zip(table["image_id"].to_pylist(), table["rel_path"].to_pylist(), strict=True)
    clashes = find_clashes(names.values())
    marks = [rel_path in clashes for rel_path in todo["rel_path"].to_pylist()]
    return todo.append_column(CLASHES, pa.array(marks, pa.bool_()))
