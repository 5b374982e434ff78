"""The errors of images that cannot be decoded or encoded, worded in one place."""

import struct

DECODER_ERRORS = (
    AssertionError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
)
"""What decoders raise on broken files. Pillow raises SyntaxError for a bad PNG chunk and RuntimeError for a bad AVIF,
and some of its plug-ins assert what a header must contain."""
DAMAGED_IMAGE = "DamagedImage"
"""The error class of an image whose pixels are partly wrong or missing. `accept_damaged` keeps such an image."""


class ImageError(Exception):
    """An image that cannot be processed. The image becomes a reject, and the run continues.

    Args:
        error_class: the class of the reject, for example "BrokenImage".
        message: what is wrong, and what to do.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def broken_image(problem: str) -> ImageError:
    """Return the error of a file that is too damaged to show any part of its image."""
    return ImageError("BrokenImage", f"{problem}. Restore the file.")


def unsupported_format(feature: str) -> ImageError:
    """Return the error of a valid file in a format, or with a feature, that is not supported."""
    return ImageError("UnsupportedFormat", f"{feature} is not supported. Convert the file, for example to PNG.")


def unsupported_samples(samples: str) -> ImageError:
    """Return the error of samples without a defined range, such as floating-point samples."""
    return ImageError(
        "UnsupportedMode", f"{samples} are not supported. Convert the file to 8-bit or 16-bit integer samples."
    )


def check_dimensions(image_format: str, width: int, height: int) -> None:
    """Check that an image has at least one pixel.

    Raises:
        ImageError: with the class BrokenImage, if the header declares no width or no height.
    """
    if width <= 0 or height <= 0:
        raise broken_image(f"{image_format}: the header declares {width}×{height} pixels")
