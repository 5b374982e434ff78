"""The prefixes of an OUTPUT: names that keep the images of several inputs apart, each with the location of its input."""

import hashlib
import json

from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.storage import Store

FOLDER = "runs/prefixes"
"""Folder in OUTPUT with one JSON file per prefix: {"prefix": NAME, "input": URL}."""


def record_prefix(output: Store, prefix: str, location: str) -> None:
    """Record the location of the images with a prefix.

    Raises:
        StorageError, OSError: when OUTPUT cannot be read or written.
    """
    if read_location(output, prefix) != location:
        content = {"prefix": prefix, "input": location}
        output.write(prefix_file(prefix), json.dumps(content, indent=2, ensure_ascii=False).encode())


def read_location(output: Store, prefix: str) -> str | None:
    """Return the location that a prefix belongs to; None for a new prefix. Raises the errors of `read_prefixes`."""
    path = prefix_file(prefix)
    return read_file(output, path)[1] if output.exists(path) else None


def read_prefixes(output: Store) -> dict[str, str]:
    """Return the prefixes of an OUTPUT and the location of the images of each, sorted by prefix.

    Raises:
        StorageError: when a file is damaged or cannot be read.
    """
    return dict(sorted(read_file(output, entry.path) for entry in output.entries(FOLDER)))


def prefix_file(prefix: str) -> str:
    """Return the path of the file of a prefix in OUTPUT."""
    return f"{FOLDER}/{hashlib.blake2b(prefix.encode(), digest_size=16).hexdigest()}.json"


def read_file(output: Store, path: str) -> tuple[str, str]:
    """Return a prefix and its location. Raise StorageError if the file is damaged."""
    try:
        content = json.loads(output.read(path))
        return str(content["prefix"]), str(content["input"])
    except (ValueError, TypeError, KeyError):
        raise StorageError(f"{output.uri(path)}: damaged. Delete it. The next run with this prefix writes it") from None
