"""Encode pixels to image files, with the metadata and the colour profile of their source."""

import io
from typing import Any

import numpy as np
from PIL import Image

from imagemill.pipeline.images.config import LOSSY_FORMATS
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.metadata import add_tiff_metadata, build_save_options
from imagemill.pipeline.images.readers.jpeg_structure import MAX_SIDE as MAX_JPEG_SIDE
from imagemill.pipeline.images.samples import row_strips

MAX_SIDES = {"JPEG": MAX_JPEG_SIDE, "WEBP": 16_383, "AVIF": 32_768}
"""The largest width and height in pixels that libjpeg and libwebp write, and that libavif reads."""
REPLACED_FORMATS = {"GIF": "PNG", "HEIC": "JPEG", "JPEG2000": "PNG", "JPEGXL": "PNG", "MPO": "JPEG", "RAW": "JPEG"}
"""The format of an output, by the format of its source, where it differs."""
FORMATS_WITH_ALPHA = ("PNG", "TIFF", "WEBP", "AVIF")


def choose_output_format(
    source_format: str,
    exact: bool = False,
    requested_format: str | None = None,
    has_alpha: bool = False,
    has_profile: bool = False,
) -> str:
    """Choose the format of an output: the requested one, or else the source's if suitable.

    PNG replaces GIF (its palette would ruin the result), JPEG 2000 (Pillow writes no profile and no metadata into it) and
    JPEG XL (which may be lossless), and replaces BMP and PPM for images with transparency or a profile, which Pillow does
    not write into them. JPEG replaces MPO, camera raw and opaque HEIC.

    Args:
        source_format: the format of the source, as in `DecodedImage.format`.
        exact: whether pixels must be lossless, so that PNG replaces the lossy formats.
        requested_format: the value of `image.format`.
        has_alpha: whether there is transparency to keep.
        has_profile: whether there is an ICC profile to keep.
    """
    if requested_format:
        return requested_format.upper()
    if exact and source_format in LOSSY_FORMATS:
        return "PNG"
    if (has_alpha and source_format in ("BMP", "HEIC", "PPM")) or (has_profile and source_format in ("BMP", "PPM")):
        return "PNG"
    return REPLACED_FORMATS.get(source_format, source_format)


def check_output_size(size: tuple[int, int], image_format: str) -> None:
    """Check that a format can hold (width, height).

    Raises:
        ImageError: with the class TooLargeForFormat.
    """
    width, height = size
    max_side = MAX_SIDES.get(image_format)
    if max_side and max(size) > max_side:
        raise ImageError(
            "TooLargeForFormat",
            f"the output has {width}×{height} pixels, but {image_format} allows at most {max_side} per side. "
            "Write PNG instead: --set image.format=png",
        )


def to_pillow(rgb: np.ndarray, source: DecodedImage, image_format: str) -> Image.Image:
    """Copy pixels to a Pillow image.

    The image is gray if the source is gray, and has alpha if the source has alpha and the format supports it.

    Args:
        rgb: (H,W,3) uint8.
        source: the image that the pixels were made from.
        image_format: the format that the image will be encoded in.
    """
    if source.is_gray:
        height, width = rgb.shape[:2]
        image = Image.new("L", (width, height))
        for rows in row_strips(width, height):
            image.paste(Image.fromarray(rgb[rows]).convert("L"), (0, rows.start))
    else:
        image = Image.fromarray(rgb)
    if source.alpha is not None and image_format in FORMATS_WITH_ALPHA:
        image.putalpha(Image.fromarray(source.alpha))
    return image


def encode_output(image: Image.Image, source: DecodedImage, image_format: str, quality: int) -> bytes:
    """Encode an image that `to_pillow` made, with the profile and the metadata of its source."""
    upright = (source.orig_width, source.orig_height)[:: -1 if source.exif_orientation >= 5 else 1]
    is_resized = image.size != upright
    options = build_save_options(image_format, source.metadata, is_resized)
    if source.profile and (source.is_gray or source.profile[16:20] != b"GRAY"):
        options["icc_profile"] = source.profile
    data = encode_image(image, image_format, quality, **options)
    return add_tiff_metadata(data, source.metadata, is_resized) if image_format == "TIFF" else data


def encode_rgb(rgb: np.ndarray, image_format: str) -> bytes:
    """Encode (H,W,3) uint8 to an image file."""
    return encode_image(Image.fromarray(rgb), image_format)


def encode_image(image: Image.Image, image_format: str, quality: int = 95, **metadata: Any) -> bytes:
    """Encode a Pillow image. JPEG and AVIF are written without chroma subsampling.

    Args:
        image: the image.
        image_format: Pillow's name of the format.
        quality: 1 to 100, of JPEG, WebP and AVIF; the other formats are lossless.
        metadata: more arguments of Pillow's writer, such as `exif` and `icc_profile`.
    """
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality},
        "AVIF": {"quality": quality, "subsampling": "4:4:4"},
        "PNG": {"compress_level": 1},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    file = io.BytesIO()
    image.save(file, image_format, **options.get(image_format, {}), **metadata)
    return file.getvalue()
