"""Pictures as files, for tests of what a picture carries."""

import io

import numpy as np
from PIL import Image

from imagemill.pipeline.images.config import PixelConfig
from imagemill.pipeline.images.decode import Picture, decode
from imagemill.pipeline.images.encode import output_format, to_file, to_pillow

H, W = 80, 120
KEEP = PixelConfig(icc="keep")
LOSSLESS = {"PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}


def saved(image: Image.Image | np.ndarray, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, image_format, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encode(rgb: np.ndarray, picture: Picture, image_format: str, quality: int = 95) -> bytes:
    """(H,W,3) uint8 to a file: gray where the picture is; with alpha, profile, EXIF and XMP where the format has them.

    A profile of gray is left out where the picture is not gray any more.
    """
    return to_file(to_pillow(rgb, picture, image_format), picture, image_format, quality)


def rewritten(data: bytes, image_format: str = "", config: PixelConfig = PixelConfig()) -> Image.Image:
    """The file that an image becomes when its pixels stay as they are."""
    picture = decode(data, config=config)
    return opened(encode(picture.rgb, picture, image_format or output_format(picture.format), config.quality))
