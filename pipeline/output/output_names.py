"""Where an output image lies below OUTPUT/images, from the source's name alone; two sources never meet, none gets out."""

import errno

from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.folder import is_image_name

MAX_COMPONENT_BYTES = 255
MAX_PATH_BYTES = 900
"""Of a name below images/: S3 takes 1,024 bytes, of which some are OUTPUT's prefix."""
NO_EXTENSION_MARK = ".image"
"""Between a name that is no image's, as members of shards may have, and the extension of its output."""


def output_name(rel_path: str, new_extension: str | None = None) -> str:
    """The relative path of an output.

    Args:
        rel_path: the source's path relative to its input.
        new_extension: ".png" and the like where the output's format is not the source's; it is added to the full name.

    A name that already ends in two image extensions gets one more, so that `a.jpg` written as PNG (`a.jpg.png`) and a
    source called `a.jpg.png` never meet; so does one that ends in `.image` and an image extension, as `a` alone becomes
    `a.image.png`. `_renamed/IMAGE_ID.ext` stands for a path that would leave the folder, that a disk or S3 may not hold, or
    that has a folder called as an image is: a bucket or a shard may hold `a.jpg` beside `a.jpg/b.jpg`, a disk cannot.
    """
    stem, dot, extension = rel_path.rpartition(".")
    added = new_extension or (f"{dot}{extension}" if may_collide(stem) else "")
    if not is_image_name(rel_path):
        added = NO_EXTENSION_MARK + added
    name = rel_path + added
    parts = name.split("/")
    fits = stays_inside(name) and len(name.encode()) <= MAX_PATH_BYTES
    safe = fits and parts[0] != "_renamed" and not any(map(is_image_name, parts[:-1]))
    return name if safe else f"_renamed/{image_id(rel_path)}{added or dot + extension}"


def stays_inside(path: str) -> bool:
    """Whether a relative path lies in the folder that it is relative to, and a disk may hold it."""
    parts = path.split("/")
    return "\0" not in path and all(
        part not in ("", ".", "..") and len(part.encode()) <= MAX_COMPONENT_BYTES for part in parts
    )


def fallback_name(rel_path: str, name: str) -> str:
    """Return the name of an output whose own `name`, by `output_name`, the file system of OUTPUT cannot hold."""
    return f"_renamed/{image_id(rel_path)}.{name.rpartition('.')[2]}"


def is_name_refused(error: BaseException) -> bool:
    """Whether a file system said that it holds no file of this name, as exFAT says of `a:b.jpg`."""
    return isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG)


def may_collide(stem: str) -> bool:
    """Whether a name that goes on with an image extension could be that of another source's output."""
    return is_image_name(stem) or stem.endswith(NO_EXTENSION_MARK)


def decoded_name(rel_path: str) -> str:
    """The name of an image that was decoded from a latent: always a PNG."""
    return output_name(rel_path, None if rel_path.lower().endswith(".png") else ".png")
