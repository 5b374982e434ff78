"""Image files with alpha, profiles and metadata."""

import io

import numpy as np
from PIL import Image

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.encode import choose_output_format, encode_output, to_pillow

H, W = 80, 120
KEEP = ImageConfig(icc="keep")
LOSSLESS = {"PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}


def encode_as(image: Image.Image | np.ndarray, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, image_format, **options)
    return out.getvalue()


def open_image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encode(rgb: np.ndarray, source: DecodedImage, image_format: str, quality: int = 95) -> bytes:
    """Encode (H,W,3) uint8 to a file, with alpha, profile, EXIF and XMP if the format supports them.

    If the source is gray, so is the file. A gray profile is dropped if the source is not gray.
    """
    return encode_output(to_pillow(rgb, source, image_format), source, image_format, quality)


def reencode(data: bytes, image_format: str = "", config: ImageConfig = ImageConfig()) -> Image.Image:
    """Decode an image and encode it again without changing its pixels."""
    decoded = decode_image(data, config=config)
    return open_image(encode(decoded.rgb, decoded, image_format or choose_output_format(decoded.format), config.quality))
