"""A folder or bucket prefix of image files, at any depth and of any name."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.storage import Store

# Files of the last line's formats, which Pillow cannot read, end as rejects that say so.
EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"),
    *(".j2k", ".jp2", ".jpf", ".jpx"),
    *(".heic", ".heif", ".jxl"),
)

MASK = ".mask.png"


@dataclass(frozen=True)
class Listed:
    """One image file of an input."""

    rel_path: str
    size: int
    etag: str
    problem: str | None = None
    """Why it is a reject before it was read."""
    mask_path: str | None = None


def is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def list_masked(store: Store) -> Iterator[Listed | None]:
    """As `list_folder`, but NAME.mask.png is no image: it is the mask of every image NAME in its folder.

    The etag of an image holds that of its mask, so that a changed mask is a changed image.
    """
    listed = list(list_folder(store))
    masks = {image.rel_path[: -len(MASK)]: image for image in listed if image and image.rel_path.endswith(MASK)}
    for image in listed:
        if image is None or image.rel_path.endswith(MASK):
            yield None
            continue
        mask = masks.get(image.rel_path.rpartition(".")[0])
        yield replace(image, etag=f"{image.etag} {mask.etag}", mask_path=mask.rel_path) if mask else image


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
