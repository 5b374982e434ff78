"""What a reader of a file format gives, and how it says that a file is not one it can read."""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace

# What broken files raise in Pillow: its PNG reader reports a bad chunk as SyntaxError, its AVIF reader as RuntimeError, its
# plug-ins assert what a header must say.
BROKEN = (
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
STRIP_PIXELS = 2_000_000
"""Pixels that are converted at a time, so that no second copy of a large image is held."""


def strips(width: int, height: int, multiple: int = 1) -> Iterator[slice]:
    """The rows of an image, some STRIP_PIXELS at a time; strips but the last have a multiple of `multiple` rows."""
    step = max(1, STRIP_PIXELS // width // multiple) * multiple
    return (slice(top, min(height, top + step)) for top in range(0, height, step))


class ImageError(Exception):
    """One image that cannot be processed: it becomes a reject and never ends a run."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass
class Opened:
    """The decoded first frame of a file, as it is stored: not yet upright, not yet sRGB."""

    pixels: Image.Image | np.ndarray
    """A loaded image of Pillow, in a mode that Pillow converts to `mode` (or RGBA) as it is meant; or an array: (H,W) gray,
    (H,W,2) gray and alpha, (H,W,3) RGB or (H,W,4) RGBA, uint8 or uint16, whose samples use the whole range of their type; or
    (H,W,4) CMYK uint8."""
    format: str
    """A name of READERS, or MPO, which is a JPEG that holds several."""
    mode: Literal["L", "RGB", "CMYK"]
    """What the samples are, without transparency. Gray pictures stay gray."""
    has_alpha: bool
    """Whether the file has transparency: in `alpha`, or else `strip` in mode RGBA has it."""
    bit_depth: int
    """Bits of a sample in the file, at least 8 (1 for bilevel images)."""
    frames: int = 1
    orientation: int = 1
    """The EXIF orientation, 1 to 8."""
    profile: bytes | None = None
    """The ICC profile of the samples."""
    exif: bytes | None = None
    """An EXIF block, or a whole TIFF file."""
    xmp: bytes | None = None
    iptc: bytes | None = None
    """Records of IPTC-IIM that do not stand in `exif`."""
    text: dict[str, str] = field(default_factory=dict)
    """Texts of a PNG by keyword; the comment of another format as "Comment"."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, (horizontal, vertical) of the stored picture."""
    damage: str | None = None
    """What is wrong with the picture data, where some of the pixels are not those that were encoded."""
    alpha: np.ndarray | None = None
    """(H,W) uint8, where transparency is kept apart from `pixels`."""
    space: ColourSpace | None = None
    """The colour space that the file declares by numbers, if it has no profile."""
    ignored: str = ""
    """What the file says about its colours and the reader cannot follow."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.size if isinstance(self.pixels, Image.Image) else self.pixels.shape[1::-1]

    @property
    def is_rgb_array(self) -> bool:
        """Whether `pixels` is (H,W,3) uint8 without transparency."""
        if isinstance(self.pixels, Image.Image) or self.has_alpha:
            return False
        return self.pixels.dtype == np.uint8 and self.pixels.shape[2:] == (3,)

    def strip(self, rows: slice) -> Image.Image:
        """Some rows as an image of Pillow."""
        if not isinstance(self.pixels, Image.Image):
            pixels = self.pixels[rows]
            part = Image.fromarray(in_8_bits(pixels, 16) if pixels.dtype == np.uint16 else pixels)
            # An array of four samples is RGBA to Pillow.
            return Image.frombytes("CMYK", part.size, part.tobytes()) if self.mode == "CMYK" else part
        width, height = self.size
        return self.pixels if rows == slice(0, height) else self.pixels.crop((0, rows.start, width, rows.stop))

    def samples(self, rows: slice) -> np.ndarray:
        """The colours of some rows at the depth of `pixels`: (h,W) gray or (h,W,3) RGB."""
        if isinstance(self.pixels, Image.Image):
            strip = self.strip(rows)
            return np.asarray(strip if strip.mode == self.mode else strip.convert(self.mode))
        pixels = self.pixels[rows]
        if self.mode == "RGB":
            return pixels[..., :3]
        return pixels if pixels.ndim == 2 else pixels[..., 0]

    @property
    def brightest(self) -> int:
        """The largest sample of the colours."""
        width, height = self.size
        return max(int(self.samples(rows).max()) for rows in strips(width, height))


def in_8_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned samples of at most 16 bits as uint8, rounded, of the same shape."""
    return in_range(samples, (1 << bits) - 1, 255).astype(np.uint8)


def in_range(samples: np.ndarray, most: int, wanted: int) -> np.ndarray:
    """Samples of 0 to `most` (at most 65535) as uint32 of 0 to `wanted`, rounded, of the same shape."""
    return (samples.astype(np.uint32) * wanted + most // 2) // most


def expand_range(pixels: np.ndarray, has_alpha: bool, bits: int) -> None:
    """Expand colours in video range (16 to 235 in 8 bits) to the whole range, in place.

    Args: pixels: (H,W) or (H,W,C) uint8 or uint16 with samples of `bits` bits that use the whole range of their type.
    """
    colours = pixels[..., : pixels.shape[2] - 1] if has_alpha else pixels
    black, span, most = 16 << bits - 8, 219 << bits - 8, np.iinfo(pixels.dtype).max
    for rows in strips(pixels.shape[1], pixels.shape[0]):
        colours[rows] = np.clip(np.round((colours[rows].astype(np.float32) - black) * (most / span)), 0, most)


@dataclass(frozen=True)
class Reader:
    """How the files of one format are read. Both functions may raise whatever is in BROKEN."""

    size_of: Callable[[io.BytesIO], tuple[int, int]]
    """(width, height) by the header alone: nothing is decoded, and no room is made for pixels. Raises: ImageError."""
    read: Callable[[io.BytesIO], Opened]
    """The first frame. Raises: ImageError for what the reader knows it cannot represent."""
