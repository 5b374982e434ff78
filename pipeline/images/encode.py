"""Encode pixels to image files, with the metadata and profile of their source."""

import io
from typing import Any

import numpy as np
from PIL import Image

from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.metadata import with_metadata, writer_options
from imagemill.pipeline.images.readers.jpeg_structure import LONGEST_SIDE as LONGEST_JPEG_SIDE
from imagemill.pipeline.images.samples import row_strips

LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF")

LONGEST_SIDE = {"JPEG": LONGEST_JPEG_SIDE, "WEBP": 16_383, "AVIF": 32_768}
"""Pixels a side that a file of a format holds: what libjpeg and WebP write, and what libavif reads."""

WITH_ALPHA = ("PNG", "TIFF", "WEBP", "AVIF")


def choose_output_format(source_format: str, exact: bool = False, asked: str | None = None, has_alpha: bool = False) -> str:
    """The format an output is written in: what is asked for, or the source's.

    PNG stands in for GIF (its palette would ruin the result) and JPEG 2000 (Pillow's writer has no place for profile and
    metadata), and for BMP and PPM with transparency, which Pillow does not write; JPEG for MPO.

    Args:
        exact: pixels must be kept to the last bit, so PNG stands in for the lossy formats.
        has_alpha: there is transparency to keep.
    """
    if asked:
        return asked.upper()
    if (exact and source_format in LOSSY_FORMATS) or (has_alpha and source_format in ("BMP", "PPM")):
        return "PNG"
    return {"GIF": "PNG", "JPEG2000": "PNG", "MPO": "JPEG"}.get(source_format, source_format)


def check_output_size(size: tuple[int, int], image_format: str) -> None:
    """Raises: ImageError for (width, height) that no file of a format holds."""
    width, height = size
    if max(size) > (longest := LONGEST_SIDE.get(image_format, max(size))):
        raise ImageError(
            "TooLargeForFormat",
            f"the output has {width}×{height} pixels, and {image_format} holds at most {longest} a side: "
            "image.format=png holds it",
        )


def to_pillow(rgb: np.ndarray, picture: DecodedImage, image_format: str) -> Image.Image:
    """What Pillow encodes, of its own memory: gray where the picture is, with alpha where the format has it."""
    if picture.is_gray:
        height, width = rgb.shape[:2]
        image = Image.new("L", (width, height))
        for rows in row_strips(width, height):
            image.paste(Image.fromarray(rgb[rows]).convert("L"), (0, rows.start))
    else:
        image = Image.fromarray(rgb)
    if picture.alpha is not None and image_format in WITH_ALPHA:
        image.putalpha(Image.fromarray(picture.alpha))
    return image


def encode_output(image: Image.Image, picture: DecodedImage, image_format: str, quality: int) -> bytes:
    """An image of `to_pillow` as a file, with the profile and metadata of its picture."""
    upright = (picture.orig_width, picture.orig_height)[:: -1 if picture.exif_orientation >= 5 else 1]
    resized = image.size != upright
    options = writer_options(image_format, picture.metadata, resized)
    if picture.profile and (picture.is_gray or picture.profile[16:20] != b"GRAY"):
        options["icc_profile"] = picture.profile
    data = encode_image(image, image_format, quality, **options)
    return with_metadata(data, picture.metadata, resized) if image_format == "TIFF" else data


def encode_rgb(rgb: np.ndarray, image_format: str) -> bytes:
    """(H,W,3) uint8 to a file in a format."""
    return encode_image(Image.fromarray(rgb), image_format)


def encode_image(image: Image.Image, image_format: str, quality: int = 95, **beside: Any) -> bytes:
    """JPEG, WebP and AVIF at a quality (JPEG and AVIF in 4:4:4), the others lossless.

    Args: beside: what Pillow's writer puts beside the pixels.
    """
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality},
        "AVIF": {"quality": quality, "subsampling": "4:4:4"},
        "PNG": {"compress_level": 1},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    out = io.BytesIO()
    image.save(out, image_format, **options.get(image_format, {}), **beside)
    return out.getvalue()
