"""The formats that Pillow reads as they are meant."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import AvifImagePlugin, Image

from imagemill.pipeline.images.errors import DECODER_ERRORS, ImageError
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import row_strips, to_uint8

# `decode_image` checks its own limit on the header, before Pillow decodes anything.
Image.MAX_IMAGE_PIXELS = None
# A thread for each image is what the workers have; with more, AVIF's bytes would depend on the machine that made them.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
EXIF_ORIENTATION = 0x0112
IPTC_RESOURCE = 0x0404


@contextmanager
def open_with_pillow(stream: io.BytesIO, image_format: str) -> Iterator[Image.Image]:
    """An image that Pillow opened with the reader of one format and has not loaded yet."""
    with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=(image_format,)) as image:
        yield image


def read_size_with_pillow(image_format: str, stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the header."""
    with open_with_pillow(stream, image_format) as image:
        return image.size


def read_with_pillow(image_format: str, stream: io.BytesIO) -> StoredImage:
    """The first frame of a file.

    Raises: ImageError for samples without a range: floating point and 32-bit integers.
    """
    with open_with_pillow(stream, image_format) as image:
        frames, bit_depth = getattr(image, "n_frames", 1), read_bit_depth(image)
        image.load()
        deep = image.mode.startswith("I")
        if image.mode == "F" or image.mode == "I":
            raise ImageError("UnsupportedMode", f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples")
        gray = deep or image.mode in ("1", "L", "LA", "La")
        mode: Literal["L", "RGB", "CMYK"] = "L" if gray else "CMYK" if image.mode == "CMYK" else "RGB"
        opened = StoredImage(
            pixels=gray_in_8_bits(image) if deep else image,
            format=str(image.format),
            mode=mode,
            has_alpha=image.has_transparency_data and not deep,
            bit_depth=bit_depth,
            frames=frames,
        )
        copy_metadata(opened, image)
        return opened


def copy_metadata(opened: StoredImage, image: Image.Image) -> None:
    """Put what Pillow found in a file next to the pixels into `opened`."""
    xmp = image.info.get("xmp")
    opened.orientation = orientation_of(image)
    opened.profile = image.info.get("icc_profile")
    opened.exif = image.info.get("exif")
    opened.xmp = xmp if isinstance(xmp, bytes) else None
    opened.iptc, opened.text, opened.dpi = iptc_of(image), text_of(image), dpi_of(image)


def copy_text_and_resolution(opened: StoredImage, stream: io.BytesIO) -> None:
    """Put the comment and the resolution into `opened`, as Pillow finds them in the header."""
    try:
        with open_with_pillow(stream, opened.format) as image:
            opened.text, opened.dpi = text_of(image), dpi_of(image)
    except DECODER_ERRORS:
        return


def iptc_of(image: Image.Image) -> bytes | None:
    """The IPTC records among the resources that Photoshop leaves in a JPEG."""
    resources = image.info.get("photoshop")
    iptc = resources.get(IPTC_RESOURCE) if isinstance(resources, dict) else None
    return iptc if isinstance(iptc, bytes) else None


def text_of(image: Image.Image) -> dict[str, str]:
    """Texts of a PNG, and the comment of a JPEG or GIF."""
    text = {key: str(value) for key, value in getattr(image, "text", {}).items()}
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        try:
            text["Comment"] = comment.decode("utf-8")
        except UnicodeDecodeError:
            text["Comment"] = comment.decode("latin-1")
    return text


def dpi_of(image: Image.Image) -> tuple[float, float] | None:
    """The resolution as Pillow found it."""
    try:
        horizontal, vertical = image.info.get("dpi", (0, 0))
        return (float(horizontal), float(vertical)) if horizontal and vertical else None
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def gray_in_8_bits(image: Image.Image) -> np.ndarray:
    """(H,W) uint8 of an image with gray samples of 16 bits."""
    gray = np.empty(image.size[::-1], np.uint8)
    for rows in row_strips(*image.size):
        gray[rows] = to_uint8(np.asarray(image.crop((0, rows.start, image.width, rows.stop))), 16)
    return gray


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or it cannot be understood.

    The value should be one SHORT. Some programs store it as another integer type, and Pillow gives bytes or a tuple then.
    """
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
        value = value[0] if isinstance(value, bytes | tuple) else value
    except DECODER_ERRORS:
        return 1
    return int(value) if value in range(1, 9) else 1


def orientation_in(exif: bytes | None, xmp: bytes | None) -> int:
    """The orientation by an EXIF block or, if it has none, by XMP: 1 to 8."""
    image = Image.new("L", (1, 1))
    image.info = {name: value for name, value in (("exif", exif), ("xmp", xmp)) if value}
    with warnings.catch_warnings(action="ignore"):
        return orientation_of(image)


def read_bit_depth(image: Image.Image) -> int:
    """Bits of a sample in the file: Pillow gives 8 of what has more, but for gray in 16."""
    if image.mode == "1":
        return 1
    return 16 if image.mode.startswith("I") else 8
