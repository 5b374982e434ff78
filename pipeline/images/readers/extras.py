"""Import the optional libraries that read some formats. A worker without one rejects images of its format."""

import importlib
from types import ModuleType

from imagemill.pipeline.images.errors import ImageError

MISSING_EXTRA = "MissingExtra"
"""The error class of an image whose format needs a library that is not installed where the image is decoded."""


def import_extra(modules: tuple[str, ...], extra: str, image_format: str) -> ModuleType:
    """Import the library of an optional dependency.

    Args:
        modules: names of libraries with the same functions, of which one is enough.
        extra: name of the optional dependency of Imagemill that installs the first of them.
        image_format: what the library reads, as the message names it.

    Raises:
        ImageError: with the class MissingExtra, and the command that installs the library.
    """
    problem = ""
    for module in modules:
        try:
            return importlib.import_module(module)
        except ImportError as e:
            if not isinstance(e, ModuleNotFoundError) or e.name != module:
                problem = problem or f" ({module} cannot be imported: {e})"
    raise ImageError(
        MISSING_EXTRA,
        f"{image_format} needs a library that is not installed{problem}. "
        f"Install it where the workers run: pip install 'imagemill[{extra}]'. Then pass --retry-failed {MISSING_EXTRA}.",
    )
