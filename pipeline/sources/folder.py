"""A folder or bucket prefix of image files, at any depth and of any name."""

import os
from collections.abc import Iterator
from dataclasses import replace

from imagemill.pipeline.sources.source import Found, Listed, escaped
from imagemill.pipeline.sources.system_files import EXCLUDED, is_excluded, is_excluded_folder
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_listing import Entry

# Files of the last line's formats, which Pillow cannot read, end as rejects that say so.
EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"),
    *(".apng", ".dib", ".pam", ".pbm", ".pgm", ".pnm", ".ppm"),
    *(".j2k", ".jp2", ".jpf", ".jpx"),
    *(".heic", ".heif", ".jxl"),
)

MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
# What begins with the length of its first box: AVIF, and HEIC, which ends as a reject that says so.
BOXES = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftyphei", b"ftyphev")

MASK = ".mask.png"
OTHER = "other"
LONGEST_KIND = 8


def is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def begins_as_image(head: bytes) -> bool:
    return head.startswith(MAGIC) or head.startswith(BOXES, 4)


def kind_of(name: str) -> str:
    """What a file that is no image is counted as: the ending of its name, as txt, where it has a plain one."""
    kind = os.path.splitext(name)[1][1:].lower()
    return kind if kind.isalnum() and len(kind) <= LONGEST_KIND else OTHER


def list_folder(store: Store) -> Iterator[Found]:
    """Every image file, and the kind of each file that is none by its name."""
    return (image_file(entry) for entry in store.entries(may_skip=is_excluded_folder))


def with_masks(listing: Iterator[Found]) -> Iterator[Found]:
    """A listing in which NAME.mask.png is no image but the mask of every image NAME beside it, in its folder or its shard.

    The etag of an image holds that of its mask, so that a changed mask is a changed image.
    """
    listed = list(listing)
    masks: dict[str, Listed] = {}
    for image in listed:
        # Of two of one name the first, as of images.
        if isinstance(image, Listed) and is_mask(image):
            masks.setdefault(image.rel_path[: -len(MASK)], image)
    for found in listed:
        if isinstance(found, str):
            yield found
        elif is_mask(found):
            yield MASK[1:]
        elif mask := masks.get(os.path.splitext(found.rel_path)[0]):
            etag = f"{found.etag} {mask.etag}"
            problem = found.problem or (mask.problem and mask.problem.replace(": ", ": its mask: ", 1))
            masked = replace(found, mask_path=mask.path, mask_offset=mask.offset, mask_size=mask.size)
            yield replace(masked, etag=etag, problem=problem)
        else:
            yield found


def is_mask(image: Listed) -> bool:
    return image.rel_path.endswith(MASK)


def image_file(entry: Entry) -> Found:
    """An image file of a listing; the kind of a file that is none by its name."""
    if is_excluded(entry.path):
        return EXCLUDED
    if not is_image_name(entry.path):
        return kind_of(entry.path)
    return unreadable(entry) or Listed(entry.path, entry.size, entry.etag, entry.path)


def unreadable(entry: Entry) -> Listed | None:
    """A file of a listing, be it an image or a shard, that cannot be opened or named; None for one that can."""
    shown = escaped(entry.path)
    problem = entry.problem if shown == entry.path else "the file's name is not valid UTF-8: rename it"
    return Listed(shown, entry.size, entry.etag, shown, problem=f"BadName: {problem}") if problem else None
