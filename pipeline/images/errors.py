"""The errors of images that cannot be decoded or encoded."""

import struct

# What broken files raise in Pillow: its PNG reader reports a bad chunk as SyntaxError, its AVIF reader as RuntimeError, its
# plug-ins assert what a header must say.
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

DAMAGED_IMAGE = "DamagedImage"
"""The class of a reject whose picture data is damaged or missing in part: `accept_damaged` takes such a picture."""


class ImageError(Exception):
    """One image that cannot be processed: it becomes a reject and never ends a run."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
