"""File bytes to pixels and back: header check, pixel limit, orientation, modes, formats."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats by what a decoder has to do with outside data; Pillow knows many more, each one an attack surface.
# (JPEG's reader opens MPO as well.)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EXIF_ORIENTATION = 0x0112
Image.MAX_IMAGE_PIXELS = None  # `decode` checks its own limit on the header, before Pillow decodes anything


class ImageError(Exception):
    """One image that cannot be done: becomes a reject, never ends a run."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass
class Picture:
    """A decoded image and what its file said of itself."""

    rgb: np.ndarray
    """(H,W,3) uint8, upright."""
    alpha: np.ndarray | None
    """(H,W) uint8, upright."""
    format: str
    gray: bool
    orig_width: int
    orig_height: int
    exif_orientation: int
    bit_depth: int
    frames: int


def decode(data: bytes, max_pixels: int) -> Picture:
    """Bytes of an image file to upright RGB.

    The first frame of an animation; 16-bit samples are scaled to 8; alpha is kept beside the colours.

    Raises: ImageError with the class EmptyFile, UnknownFormat, TooManyPixels, UnsupportedMode or BrokenImage.
    """
    if not data:
        raise ImageError("EmptyFile", "the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    "TooManyPixels",
                    f"{width}×{height} = {width * height / 1e6:.1f} MP is over the limit of {max_pixels / 1e6:g} MP",
                )
            return to_picture(image, data)
    except UnidentifiedImageError:
        raise ImageError("UnknownFormat", f"not an image in a known format; begins with {data[:16]!r}") from None
    # What broken files raise in Pillow; SyntaxError is how its PNG reader reports a bad chunk.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as e:
        raise ImageError("BrokenImage", f"{type(e).__name__}: {e}") from None


def to_picture(image: Image.Image, data: bytes) -> Picture:
    width, height = image.size
    source_format = str(image.format)
    frames = getattr(image, "n_frames", 1)
    bit_depth = 1 if image.mode == "1" else 8
    if image.mode.startswith("I;16") or (source_format == "PNG" and data[24] == 16):
        bit_depth = 16
    image.load()
    orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode in ("I", "F"):
        raise ImageError("UnsupportedMode", f"{'32-bit integer' if mode == 'I' else 'floating-point'} samples")
    gray = mode in ("1", "L", "LA", "La") or mode.startswith("I;16")
    if mode.startswith("I;16"):
        samples = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
    alpha = None
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        alpha = np.array(upright.getchannel("A"))
    rgb = np.array(upright.convert("RGB"))
    return Picture(rgb, alpha, source_format, gray, width, height, orientation, bit_depth, frames)


def output_format(source_format: str) -> str:
    """The format an output is written in: the source's, PNG for GIF (its palette would ruin the result), JPEG for MPO."""
    return {"GIF": "PNG", "MPO": "JPEG"}.get(source_format, source_format)


def encode(rgb: np.ndarray, picture: Picture, image_format: str) -> bytes:
    """(H,W,3) uint8 to a file in a format, gray and with alpha where the source was."""
    image = Image.fromarray(rgb)
    if picture.gray:
        image = image.convert("L")
    if picture.alpha is not None and image_format in ("PNG", "TIFF", "WEBP"):
        image.putalpha(Image.fromarray(picture.alpha))
    return encode_image(image, image_format)


def encode_rgb(rgb: np.ndarray, image_format: str) -> bytes:
    """(H,W,3) uint8 to a file in a format."""
    return encode_image(Image.fromarray(rgb), image_format)


def encode_image(image: Image.Image, image_format: str) -> bytes:
    """JPEG and WebP at quality 95 (4:4:4), the others lossless."""
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"quality": 95},
        "PNG": {"compress_level": 1},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    out = io.BytesIO()
    image.save(out, image_format, **options.get(image_format, {}))
    return out.getvalue()
