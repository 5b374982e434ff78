"""File bytes to pixels and back: header check, pixel limit, orientation, modes, formats."""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# Formats by what a decoder has to do with outside data; Pillow knows many more, each one an attack surface.
# (JPEG's reader opens MPO as well.)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EXIF_ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258
# What makes an image upright, by its EXIF orientation (as in ImageOps.exif_transpose, which also rewrites the EXIF and fails
# on files whose EXIF is odd).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What broken files raise in Pillow; SyntaxError is how its PNG reader reports a bad chunk.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)
MAX_PIXELS = 40_000_000
"""What a run takes unless it is told otherwise."""
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


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
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
    except BROKEN as e:
        raise ImageError("BrokenImage", f"{type(e).__name__}: {e}") from None


def pixels_of(data: bytes) -> int:
    """Width × height by the header; 0 where there is none that can be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except (UnidentifiedImageError, *BROKEN):
        return 0


def to_picture(image: Image.Image, data: bytes) -> Picture:
    width, height = image.size
    source_format = str(image.format)
    frames = getattr(image, "n_frames", 1)
    bit_depth = depth_of(image, data)
    image.load()
    gray = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
    if source_format == "PNG":
        gray = gray or data[25] in (0, 4)  # the header's colour type: gray, gray with alpha
    if image.mode == "F" or (image.mode == "I" and source_format not in ("PNG", "PPM")):
        raise ImageError("UnsupportedMode", f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples")
    orientation = orientation_of(image)
    if image.mode.startswith("I"):
        gray = True
        samples = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"))
    rgb = np.array(image.convert("RGB"))
    return Picture(rgb, alpha, source_format, gray, width, height, orientation, bit_depth, frames)


def depth_of(image: Image.Image, data: bytes) -> int:
    """Bits of a sample: 1, 8 or 16."""
    if image.mode == "1":
        return 1
    deep = image.mode.startswith("I")
    if image.format == "PNG":
        deep = data[24] == 16  # the header's bit depth
    elif image.format == "TIFF":
        deep = deep or max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))) == 16
    return 16 if deep else 8


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be understood."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in UPRIGHT else 1


def output_format(source_format: str, exact: bool = False) -> str:
    """The format an output is written in: the source's, PNG for GIF (its palette would ruin the result), JPEG for MPO.

    Args: exact: pixels must be kept to the last bit, so PNG stands in for the lossy formats.
    """
    if exact and source_format in ("JPEG", "MPO", "WEBP"):
        return "PNG"
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
