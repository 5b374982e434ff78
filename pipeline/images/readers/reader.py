"""The contract of a reader: its two functions, and the image that it returns."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace
from imagemill.pipeline.images.samples import row_strips, to_uint8


@dataclass
class StoredImage:
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
            part = Image.fromarray(to_uint8(pixels, 16) if pixels.dtype == np.uint16 else pixels)
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
        return max(int(self.samples(rows).max()) for rows in row_strips(width, height))


@dataclass(frozen=True)
class Reader:
    """How the files of one format are read. Both functions may raise whatever is in DECODER_ERRORS."""

    read_size: Callable[[io.BytesIO], tuple[int, int]]
    """(width, height) by the header alone: nothing is decoded, and no room is made for pixels. Raises: ImageError."""
    read: Callable[[io.BytesIO], StoredImage]
    """The first frame. Raises: ImageError for what the reader knows it cannot represent."""
