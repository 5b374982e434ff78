"""A folder or bucket prefix of image files, at any depth and of any name."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.storage import Store

EXTENSIONS = (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listed:
    """One image file of an input."""

    rel_path: str
    size: int
    etag: str
    problem: str | None = None
    """Why it is a reject before it was read."""


def is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def list_folder(store: Store) -> Iterator[Listed | None]:
    """Every image file, and None for each file that is none by its name (they are counted, not read)."""
    for entry in store.entries():
        if not is_image_name(entry.path):
            yield None
            continue
        try:
            entry.path.encode()
        except UnicodeEncodeError:
            # Arrow holds UTF-8 only; a name with other bytes is shown escaped.
            shown = entry.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield Listed(shown, entry.size, entry.etag, "the file's name is not valid UTF-8: rename it")
            continue
        yield Listed(entry.path, entry.size, entry.etag, entry.problem)
