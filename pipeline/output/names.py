"""Where an output image lies below OUTPUT/images, from the source's name alone; two sources never meet, none gets out."""

from pipeline.schema import image_id
from pipeline.sources.folder import is_image_name

MAX_COMPONENT_BYTES = 255
NAMELESS = ".image"
"""Between a name that is no image's, as members of shards may have, and the extension of its output."""


def output_name(rel_path: str, new_extension: str | None = None) -> str:
    """The relative path of an output.

    Args:
        rel_path: the source's path relative to its input.
        new_extension: ".png" and the like where the output's format is not the source's; it is added to the full name.

    A name that already ends in two image extensions gets one more, so that `a.jpg` written as PNG (`a.jpg.png`) and a
    source called `a.jpg.png` never meet; so does one that ends in `.image` and an image extension, as `a` alone becomes
    `a.image.png`. A path that would leave the folder, or that a disk may not hold, becomes `_renamed/IMAGE_ID.ext`.
    """
    stem, dot, extension = rel_path.rpartition(".")
    added = new_extension or (f"{dot}{extension}" if is_taken(stem) else "")
    if not is_image_name(rel_path):
        added = NAMELESS + added
    name = rel_path + added
    parts = name.split("/")
    # `a.gif`, written as `a.gif.png`, must not find a folder of that name.
    double = any(is_image_name(folder) and is_taken(folder.rpartition(".")[0]) for folder in parts[:-1])
    safe = not double and stays_inside(name) and parts[0] != "_renamed"
    return name if safe else f"_renamed/{image_id(rel_path)}{added or dot + extension}"


def stays_inside(path: str) -> bool:
    """Whether a relative path lies in the folder that it is relative to, and a disk may hold it."""
    parts = path.split("/")
    return "\0" not in path and all(
        part not in ("", ".", "..") and len(part.encode()) <= MAX_COMPONENT_BYTES for part in parts
    )


def is_taken(stem: str) -> bool:
    """Whether a name that goes on with an image extension could be that of another source's output."""
    return is_image_name(stem) or stem.endswith(NAMELESS)


def decoded_name(rel_path: str) -> str:
    """The name of an image that was decoded from a latent: always a PNG."""
    return output_name(rel_path, None if rel_path.lower().endswith(".png") else ".png")
