"""The contract of a reader: its two functions, and the `StoredImage` that it returns."""

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
    """The first frame of a file as it is stored: decoded, but not upright and not in sRGB."""

    pixels: Image.Image | np.ndarray
    """Either a loaded Pillow image, in a mode that Pillow converts correctly to `mode` or RGBA; or an array whose
    samples use the full range of their dtype: (H,W) gray, (H,W,2) gray and alpha, (H,W,3) RGB or (H,W,4) RGBA of
    uint8 or uint16, or (H,W,4) CMYK of uint8."""
    format: str
    """A key of READERS, or MPO, which is a JPEG that holds several images."""
    mode: Literal["L", "RGB", "CMYK"]
    """The colours of the samples, without transparency. Gray images stay gray."""
    has_alpha: bool
    """Whether the file has transparency: in `alpha` if it is not None, else in `pixels`."""
    bit_depth: int
    """Bits per sample in the file: 1 for bilevel images, else at least 8."""
    frames: int = 1
    orientation: int = 1
    """The EXIF orientation, 1 to 8."""
    profile: bytes | None = None
    """The ICC profile of the samples."""
    exif: bytes | None = None
    """A block of EXIF, or a whole TIFF file."""
    xmp: bytes | None = None
    iptc: bytes | None = None
    """IPTC-IIM records that are not in `exif`."""
    text: dict[str, str] = field(default_factory=dict)
    """PNG texts by keyword. The comment of another format has the keyword "Comment"."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, (horizontal, vertical), of the stored image."""
    damage: str | None = None
    """What is damaged, if some pixels are wrong or missing."""
    alpha: np.ndarray | None = None
    """(H,W) uint8, if transparency is stored apart from `pixels`."""
    colour_space: ColourSpace | None = None
    """The colour space that the file declares without an ICC profile."""
    ignored_colours: str = ""
    """What the file declares about its colours that cannot be applied."""

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

    def pillow_strip(self, rows: slice) -> Image.Image:
        """Return rows of the image as a Pillow image of 8 bits per sample."""
        if not isinstance(self.pixels, Image.Image):
            pixels = self.pixels[rows]
            strip = Image.fromarray(to_uint8(pixels, 16) if pixels.dtype == np.uint16 else pixels)
            # Pillow takes an array with four samples for RGBA.
            return Image.frombytes("CMYK", strip.size, strip.tobytes()) if self.mode == "CMYK" else strip
        width, height = self.size
        return self.pixels if rows == slice(0, height) else self.pixels.crop((0, rows.start, width, rows.stop))

    def colour_samples(self, rows: slice) -> np.ndarray:
        """Return rows of the colours at the bit depth of `pixels`: (h,W) gray or (h,W,3) RGB."""
        if isinstance(self.pixels, Image.Image):
            strip = self.pillow_strip(rows)
            return np.asarray(strip if strip.mode == self.mode else strip.convert(self.mode))
        pixels = self.pixels[rows]
        if self.mode == "RGB":
            return pixels[..., :3]
        return pixels if pixels.ndim == 2 else pixels[..., 0]

    @property
    def max_sample(self) -> int:
        """The largest sample of the colours."""
        width, height = self.size
        return max(int(self.colour_samples(rows).max()) for rows in row_strips(width, height))


@dataclass(frozen=True)
class Reader:
    """How files of one format are read.

    Both functions may raise ImageError and anything in DECODER_ERRORS.
    """

    read_size: Callable[[io.BytesIO], tuple[int, int]]
    """Reads (width, height) from the header alone, without decoding and without allocating pixels."""
    read: Callable[[io.BytesIO], StoredImage]
    """Decodes the first frame. Raises ImageError for images that the reader cannot represent."""
    budget_factor: int = 1
    """How much more memory decoding a pixel takes than in other formats. See `PixelBudget`."""
