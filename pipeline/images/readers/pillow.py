"""Read formats, or parts of their metadata, with Pillow."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import AvifImagePlugin, Image

from imagemill.pipeline.images.errors import DECODER_ERRORS, unsupported_samples
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import row_strips, to_uint8

# `decode_image` checks its own limit on the header, before Pillow decodes anything.
Image.MAX_IMAGE_PIXELS = None
# Workers decode each image in one thread. With more threads, the bytes of an encoded AVIF would depend on the machine.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
EXIF_ORIENTATION = 0x0112
IPTC_RESOURCE = 0x0404


@contextmanager
def open_with_pillow(stream: io.BytesIO, image_format: str) -> Iterator[Image.Image]:
    """Open a file with Pillow's reader of one format, without decoding it and without warnings."""
    with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=(image_format,)) as image:
        yield image


def read_size_with_pillow(image_format: str, stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the header."""
    with open_with_pillow(stream, image_format) as image:
        return image.size


def read_with_pillow(image_format: str, stream: io.BytesIO) -> StoredImage:
    """Decode the first frame.

    Raises:
        ImageError: with the class UnsupportedMode, for floating-point and 32-bit integer samples.
    """
    with open_with_pillow(stream, image_format) as image:
        frames, bit_depth = getattr(image, "n_frames", 1), read_bit_depth(image)
        image.load()
        if image.mode == "F" or image.mode == "I":
            raise unsupported_samples(f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples")
        is_deep = image.mode.startswith("I")
        is_gray = is_deep or image.mode in ("1", "L", "LA", "La")
        mode: Literal["L", "RGB", "CMYK"] = "L" if is_gray else "CMYK" if image.mode == "CMYK" else "RGB"
        stored = StoredImage(
            pixels=convert_deep_gray(image) if is_deep else image,
            format=str(image.format),
            mode=mode,
            has_alpha=image.has_transparency_data and not is_deep,
            bit_depth=bit_depth,
            frames=frames,
        )
        copy_metadata(stored, image)
        return stored


def copy_metadata(stored: StoredImage, image: Image.Image) -> None:
    """Copy orientation, profile and metadata of a Pillow image into `stored`."""
    xmp = image.info.get("xmp")
    stored.orientation = read_orientation(image)
    stored.profile = image.info.get("icc_profile")
    stored.exif = image.info.get("exif")
    stored.xmp = xmp if isinstance(xmp, bytes) else None
    stored.iptc, stored.text, stored.dpi = read_iptc(image), read_text(image), read_dpi(image)


def copy_text_and_resolution(stored: StoredImage, stream: io.BytesIO) -> None:
    """Copy comment and resolution from the header, as Pillow reads them, into `stored`."""
    try:
        with open_with_pillow(stream, stored.format) as image:
            stored.text, stored.dpi = read_text(image), read_dpi(image)
    except DECODER_ERRORS:
        return


def read_iptc(image: Image.Image) -> bytes | None:
    """Return the IPTC records among the Photoshop resources of a JPEG."""
    resources = image.info.get("photoshop")
    iptc = resources.get(IPTC_RESOURCE) if isinstance(resources, dict) else None
    return iptc if isinstance(iptc, bytes) else None


def read_text(image: Image.Image) -> dict[str, str]:
    """Return the texts of a PNG, or the comment of a JPEG or GIF."""
    text = {key: str(value) for key, value in getattr(image, "text", {}).items()}
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        try:
            text["Comment"] = comment.decode("utf-8")
        except UnicodeDecodeError:
            text["Comment"] = comment.decode("latin-1")
    return text


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution in pixels per inch; None if it is missing or invalid."""
    try:
        horizontal, vertical = image.info.get("dpi", (0, 0))
        return (float(horizontal), float(vertical)) if horizontal and vertical else None
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def convert_deep_gray(image: Image.Image) -> np.ndarray:
    """Convert an image of 16-bit gray samples to (H,W) uint8."""
    gray = np.empty(image.size[::-1], np.uint8)
    for rows in row_strips(*image.size):
        gray[rows] = to_uint8(np.asarray(image.crop((0, rows.start, image.width, rows.stop))), 16)
    return gray


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or invalid.

    The value should be a single SHORT. Some programs store another integer type, which Pillow returns as bytes or a tuple.
    """
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
        value = value[0] if isinstance(value, bytes | tuple) else value
    except DECODER_ERRORS:
        return 1
    return int(value) if value in range(1, 9) else 1


def parse_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8, of a block of EXIF; if it contains none, of XMP."""
    image = Image.new("L", (1, 1))
    image.info = {name: value for name, value in (("exif", exif), ("xmp", xmp)) if value}
    with warnings.catch_warnings(action="ignore"):
        return read_orientation(image)


def read_bit_depth(image: Image.Image) -> int:
    """Return the bits per sample in the file.

    Pillow reduces deeper samples to 8 bits, except 16-bit gray.
    """
    if image.mode == "1":
        return 1
    return 16 if image.mode.startswith("I") else 8
