"""The name of an output image below OUTPUT/images, from the name of its source alone.

Two sources never get the same name, and no name leaves the folder.
"""

import errno

from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.folder import is_image_name

MAX_COMPONENT_BYTES = 255
MAX_PATH_BYTES = 900
"""Maximum length of a name below images/. S3 allows 1,024 bytes, including the prefix of OUTPUT."""
NO_EXTENSION_MARK = ".image"
"""Inserted between a name without an image extension, such as a shard member's, and the extension of the output."""


def output_name(rel_path: str, new_extension: str | None = None) -> str:
    """Return the path of an output image below OUTPUT/images.

    A name that already ends in two image extensions gets another one, so that `a.jpg` written as PNG (`a.jpg.png`) never has
    the name of a source `a.jpg.png`. The same holds for a name that ends in `.image` and an image extension, because `a`
    becomes `a.image.png`. The name is `_renamed/IMAGE_ID.ext` if the path would leave the folder, if a disk or S3 cannot
    store it, or if a folder in it is named like an image: a bucket or a shard can have both `a.jpg` and `a.jpg/b.jpg`, a
    disk cannot.

    Args:
        rel_path: path of the source relative to its input.
        new_extension: extension to add to the full name, such as ".png", if the format of the output is not the source's.
    """
    stem, dot, extension = rel_path.rpartition(".")
    added = new_extension or (f"{dot}{extension}" if may_collide(stem) else "")
    if not is_image_name(rel_path):
        added = NO_EXTENSION_MARK + added
    name = rel_path + added
    return name if is_storable(name) else f"_renamed/{image_id(rel_path)}{added or dot + extension}"


def is_storable(name: str) -> bool:
    """Return whether a disk and S3 can store a name inside a folder, and no image is named like one of its folders."""
    parts = name.split("/")
    fits = stays_inside(name) and len(name.encode()) <= MAX_PATH_BYTES
    return fits and parts[0] != "_renamed" and not any(map(is_image_name, parts[:-1]))


def stays_inside(path: str) -> bool:
    """Return whether a relative path stays in its folder and is valid on a disk."""
    parts = path.split("/")
    return "\0" not in path and all(
        part not in ("", ".", "..") and len(part.encode()) <= MAX_COMPONENT_BYTES for part in parts
    )


def fallback_name(rel_path: str, name: str) -> str:
    """Return the name to use if the file system of OUTPUT cannot store `name`, the result of `output_name`."""
    return f"_renamed/{image_id(rel_path)}.{name.rpartition('.')[2]}"


def is_name_refused(error: BaseException) -> bool:
    """Return whether an error means that the file system does not allow the name, like exFAT for `a:b.jpg`."""
    return isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG)


def may_collide(stem: str) -> bool:
    """Return whether a stem plus an image extension could be the name of another source's output."""
    return is_image_name(stem) or stem.endswith(NO_EXTENSION_MARK)


def decoded_name(rel_path: str) -> str:
    """Return the name of an image that is decoded from a latent, which is always a PNG."""
    return output_name(rel_path, None if rel_path.lower().endswith(".png") else ".png")
