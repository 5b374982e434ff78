"""A folder or bucket prefix of image files, at any depth and of any name."""

import os
from collections.abc import Iterator
from dataclasses import replace

from imagemill.pipeline.sources.source import ListedEntry, ListedImage, escape_name
from imagemill.pipeline.sources.system_files import EXCLUDED, is_excluded, is_excluded_folder
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_listing import Entry

# Files of the last line's formats, which Pillow cannot read, end as rejects that say so.
IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"),
    *(".apng", ".dib", ".pam", ".pbm", ".pgm", ".pnm", ".ppm"),
    *(".j2k", ".jp2", ".jpf", ".jpx"),
    *(".heic", ".heif", ".jxl"),
)

IMAGE_SIGNATURES = (
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
BOX_SIGNATURES = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftyphei", b"ftyphev")

MASK_SUFFIX = ".mask.png"
OTHER_KIND = "other"
MAX_KIND_CHARACTERS = 8


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def has_image_signature(head: bytes) -> bool:
    return head.startswith(IMAGE_SIGNATURES) or head.startswith(BOX_SIGNATURES, 4)


def file_kind(name: str) -> str:
    """What a file that is no image is counted as: the ending of its name, as txt, where it has a plain one."""
    kind = os.path.splitext(name)[1][1:].lower()
    return kind if kind.isalnum() and len(kind) <= MAX_KIND_CHARACTERS else OTHER_KIND


def list_folder(store: Store) -> Iterator[ListedEntry]:
    """Every image file, and the kind of each file that is none by its name."""
    return (classify_file(entry) for entry in store.entries(may_skip=is_excluded_folder))


def attach_masks(listing: Iterator[ListedEntry]) -> Iterator[ListedEntry]:
    """A listing in which NAME.mask.png is no image but the mask of every image NAME beside it, in its folder or its shard.

    The etag of an image holds that of its mask, so that a changed mask is a changed image.
    """
    listed = list(listing)
    masks: dict[str, ListedImage] = {}
    for image in listed:
        # Of two of one name the first, as of images.
        if isinstance(image, ListedImage) and is_mask(image):
            masks.setdefault(image.rel_path[: -len(MASK_SUFFIX)], image)
    for found in listed:
        if isinstance(found, str):
            yield found
        elif is_mask(found):
            yield MASK_SUFFIX[1:]
        elif mask := masks.get(os.path.splitext(found.rel_path)[0]):
            etag = f"{found.etag} {mask.etag}"
            problem = found.problem or (mask.problem and mask.problem.replace(": ", ": its mask: ", 1))
            masked = replace(found, mask_path=mask.path, mask_offset=mask.offset, mask_size=mask.size)
            yield replace(masked, etag=etag, problem=problem)
        else:
            yield found


def is_mask(image: ListedImage) -> bool:
    return image.rel_path.endswith(MASK_SUFFIX)


def classify_file(entry: Entry) -> ListedEntry:
    """An image file of a listing; the kind of a file that is none by its name."""
    if is_excluded(entry.path):
        return EXCLUDED
    if not is_image_name(entry.path):
        return file_kind(entry.path)
    return reject_unreadable(entry) or ListedImage(entry.path, entry.size, entry.etag, entry.path)


def reject_unreadable(entry: Entry) -> ListedImage | None:
    """A file of a listing, be it an image or a shard, that cannot be opened or named; None for one that can."""
    shown = escape_name(entry.path)
    problem = entry.problem if shown == entry.path else "the file's name is not valid UTF-8: rename it"
    return ListedImage(shown, entry.size, entry.etag, shown, problem=f"BadName: {problem}") if problem else None
