"""A folder or bucket prefix of image files, at any depth and of any name."""

from collections.abc import Iterator
from dataclasses import replace

from pipeline.sources.source import Listed, escaped
from pipeline.storage import Entry, Store

# Files of the last line's formats, which Pillow cannot read, end as rejects that say so.
EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"),
    *(".j2k", ".jp2", ".jpf", ".jpx"),
    *(".heic", ".heif", ".jxl"),
)

MASK = ".mask.png"


def is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def list_folder(store: Store) -> Iterator[Listed | None]:
    """Every image file, and None for each file that is none by its name."""
    return (image_file(entry) for entry in store.entries())


def with_masks(listing: Iterator[Listed | None]) -> Iterator[Listed | None]:
    """A listing in which NAME.mask.png is no image but the mask of every image NAME beside it, in its folder or its shard.

    The etag of an image holds that of its mask, so that a changed mask is a changed image.
    """
    listed = list(listing)
    masks = {image.rel_path[: -len(MASK)]: image for image in listed if image and is_mask(image)}
    for image in listed:
        if image is None or is_mask(image):
            yield None
            continue
        if mask := masks.get(image.rel_path.rpartition(".")[0]):
            etag = f"{image.etag} {mask.etag}"
            image = replace(image, etag=etag, mask_path=mask.path, mask_offset=mask.offset, mask_size=mask.size)
        yield image


def is_mask(image: Listed) -> bool:
    return image.rel_path.endswith(MASK)


def image_file(entry: Entry) -> Listed | None:
    """An image file of a listing; None for a file that is none by its name (it is counted, not read)."""
    if not is_image_name(entry.path):
        return None
    return unreadable(entry) or Listed(entry.path, entry.size, entry.etag, entry.path)


def unreadable(entry: Entry) -> Listed | None:
    """A file of a listing, be it an image or a shard, that cannot be opened or named; None for one that can."""
    shown = escaped(entry.path)
    problem = entry.problem if shown == entry.path else "the file's name is not valid UTF-8: rename it"
    return Listed(shown, entry.size, entry.etag, shown, problem=f"BadName: {problem}") if problem else None
