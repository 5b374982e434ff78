"""Image files in a folder or bucket prefix, at any depth, and the masks next to them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from mimetypes import MimeTypes

from imagemill.pipeline.sources.source import UNREADABLE_FOLDER, ListedEntry, ListedImage, escape_name
from imagemill.pipeline.sources.system_files import EXCLUDED, is_excluded, is_excluded_folder
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_listing import Entry

IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"),
    *(".apng", ".dib", ".pam", ".pbm", ".pgm", ".pnm", ".ppm"),
    *(".j2k", ".jp2", ".jpf", ".jpx"),
    *(".heic", ".heif", ".hif", ".jxl"),
    # camera raw
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
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
    b"\0\0\0\x0cJXL ",
    b"FUJIFILMCCD-RAW",
)
# AVIF and HEIC files begin with the length of their first box, so the signature starts at byte 4.
BOX_SIGNATURES = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftyphei", b"ftyphev", b"ftypcrx ")

MASK_SUFFIX = ".mask.png"
OTHER_KIND = "other"
MAX_KIND_CHARACTERS = 8
"""Longer extensions are counted as `other`."""


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image extension."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_file_name(name: str) -> bool:
    """Return whether a name has the extension of a usual kind of file, so that it hardly names a folder."""
    # Emacs marks a file that is being edited with a link `.#NAME`, which has no target.
    is_mark = os.path.basename(name).startswith(".#")
    return is_mark or is_image_name(name) or os.path.splitext(name)[1].lower() in file_extensions()


@cache
def file_extensions() -> dict[str, str]:
    """Return the extensions that Python knows, without those that a machine adds."""
    return MimeTypes().types_map[True]


def has_image_signature(head: bytes) -> bool:
    """Return whether a file begins like an image. The first 16 bytes are enough."""
    return head.startswith(IMAGE_SIGNATURES) or head.startswith(BOX_SIGNATURES, 4)


def file_kind(name: str) -> str:
    """Return the kind that a file that is not an image is counted as: its extension, or `other`."""
    kind = os.path.splitext(name)[1][1:].lower()
    return kind if kind.isalnum() and len(kind) <= MAX_KIND_CHARACTERS else OTHER_KIND


def list_folder(store: Store) -> Iterator[ListedEntry]:
    """List every image file, and the kind of each other file, by their names."""
    return (classify_file(entry) for entry in store.entries(skips=is_excluded_folder))


def attach_masks(entries: Iterable[ListedEntry]) -> Iterator[ListedEntry]:
    """Turn each NAME.mask.png of a listing into the mask of the images NAME.* in the same folder or shard.

    The etag of an image includes the etag of its mask, so that a changed mask means a changed image.
    """
    listed = list(entries)
    masks: dict[str, ListedImage] = {}
    for image in listed:
        # Of two masks with one name the first counts, like of two images.
        if isinstance(image, ListedImage) and is_mask(image):
            masks.setdefault(image.rel_path[: -len(MASK_SUFFIX)], image)
    for entry in listed:
        if isinstance(entry, str):
            yield entry
        elif is_mask(entry):
            yield MASK_SUFFIX[1:]
        elif mask := masks.get(os.path.splitext(entry.rel_path)[0]):
            etag = f"{entry.etag} {mask.etag}"
            problem = entry.problem or (mask.problem and mask.problem.replace(": ", ": its mask: ", 1))
            masked = replace(entry, mask_path=mask.path, mask_offset=mask.offset, mask_size=mask.size)
            yield replace(masked, etag=etag, problem=problem)
        else:
            yield entry


def is_mask(image: ListedImage) -> bool:
    """Return whether a listed image is a mask, by its name."""
    return image.rel_path.endswith(MASK_SUFFIX)


def classify_file(entry: Entry) -> ListedEntry:
    """Return a file of a store as a listed image, or the kind of a file that is not an image.

    A folder that cannot be listed is a listed image with a problem, and a skipped folder counts as one excluded file. A
    broken link counts as such a folder, unless its name is that of a file: its target may be a folder on another disk.
    """
    path, is_broken_link = entry.path.rstrip("/"), entry.is_link and not is_file_name(entry.path)
    is_folder = path != entry.path or is_broken_link
    if is_excluded(entry.path) or (is_folder and (is_excluded_folder(path) or not entry.problem)):
        return EXCLUDED
    if is_folder:
        shown, advice = escape_name(path), ". Mount the disk of its target, or remove the link" if is_broken_link else ""
        return ListedImage(shown, 0, entry.etag, shown, problem=f"{UNREADABLE_FOLDER}: {entry.problem}{advice}")
    if not is_image_name(entry.path):
        return file_kind(entry.path)
    return reject_unreadable(entry) or ListedImage(entry.path, entry.size, entry.etag, entry.path)


def reject_unreadable(entry: Entry, error_class: str = "BadName") -> ListedImage | None:
    """Return the reject of an image or shard that cannot be opened or has an invalid name; None for a readable file.

    Args:
        entry: the file.
        error_class: the error class of a file that cannot be opened.
    """
    shown, problem = escape_name(entry.path), entry.problem
    if shown != entry.path:
        error_class, problem = "BadName", "the file name is not valid UTF-8. Rename the file"
    return ListedImage(shown, entry.size, entry.etag, shown, problem=f"{error_class}: {problem}") if problem else None
