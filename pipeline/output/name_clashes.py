"""Images whose names differ only in case, if the file system of OUTPUT does not distinguish case."""

import unicodedata
from collections.abc import Iterable

import pyarrow as pa

from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.storage import Store

CLASHES = "clashes"
"""Column of references: whether the output file of the image must be renamed."""


def fold_name(rel_path: str) -> str:
    """Return a path in the form in which such file systems compare it: equal for two names of one file."""
    parts = unicodedata.normalize("NFC", rel_path).casefold().split("/")
    return "/".join(part.rstrip(". ") for part in parts)


def find_clashes(rel_paths: Iterable[str]) -> set[str]:
    """Return the paths that such file systems confuse with another path of the list."""
    groups: dict[str, set[str]] = {}
    for rel_path in rel_paths:
        groups.setdefault(fold_name(rel_path), set()).add(rel_path)
    return {rel_path for group in groups.values() if len(group) > 1 for rel_path in group}


def mark_clashes(output: Store, todo: pa.Table) -> pa.Table:
    """Mark the images whose output file would replace that of another image.

    All images with one folded name are marked, but an existing row keeps its file. If OUTPUT distinguishes case, like S3 and
    most Linux file systems, nothing is read and no column is added.

    Args:
        output: the OUTPUT.
        todo: the images of a plan (schema.REFERENCE).

    Returns:
        The images, with the column CLASHES if OUTPUT does not distinguish case.

    Raises:
        StorageError, OSError: when OUTPUT cannot be read.
    """
    if not output.folds_case():
        return todo
    names: dict[str, str] = {}
    for table in (read_parts(output, list_parts(output, "results"), ["image_id", "rel_path"]), todo):
        names |= zip(table["image_id"].to_pylist(), table["rel_path"].to_pylist(), strict=True)
    clashes = find_clashes(names.values())
    marks = [rel_path in clashes for rel_path in todo["rel_path"].to_pylist()]
    return todo.append_column(CLASHES, pa.array(marks, pa.bool_()))
