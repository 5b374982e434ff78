"""Import the optional libraries that read some formats. A worker without one rejects images of its format."""

import importlib
from types import ModuleType

from imagemill.pipeline.images.errors import ImageError

MISSING_EXTRA = "MissingExtra"
"""The error class of an image whose format needs a library that is not installed where the image is decoded."""


def import_extra(module: str, extra: str, image_format: str) -> ModuleType:
    """Import the library of an optional dependency.

    Args:
        module: name of the library.
        extra: name of the optional dependency of Imagemill that installs the library.
        image_format: what the library reads, as the message names it.

    Raises:
        ImageError: with the class MissingExtra, and the command that installs the library.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        problem = "" if isinstance(e, ModuleNotFoundError) and e.name == module else f" ({e})"
        raise ImageError(
            MISSING_EXTRA,
            f"{image_format} needs the package {module.replace('_', '-')}, which cannot be imported{problem}. "
            f"Install it where the workers run: pip install 'imagemill[{extra}]'. Then pass --retry-failed {MISSING_EXTRA}.",
        ) from None
