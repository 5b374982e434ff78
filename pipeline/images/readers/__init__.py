"""The readers of the supported formats.

To add a format, add its reader to READERS here and its signature to SIGNATURES in signatures.py.
"""

from functools import partial

from imagemill.pipeline.images.readers.avif import read_avif
from imagemill.pipeline.images.readers.bmp import read_bmp, read_bmp_size
from imagemill.pipeline.images.readers.gif import read_gif, read_gif_size
from imagemill.pipeline.images.readers.heic import read_heic, read_heic_size
from imagemill.pipeline.images.readers.jpeg import read_jpeg, read_jpeg_size
from imagemill.pipeline.images.readers.jpeg2000 import read_jpeg2000, read_jpeg2000_size
from imagemill.pipeline.images.readers.jpegxl import read_jpegxl, read_jpegxl_size
from imagemill.pipeline.images.readers.pillow import read_size_with_pillow
from imagemill.pipeline.images.readers.png import read_png, read_png_size
from imagemill.pipeline.images.readers.ppm import read_ppm, read_ppm_size
from imagemill.pipeline.images.readers.raw import read_raw, read_raw_size
from imagemill.pipeline.images.readers.reader import Reader
from imagemill.pipeline.images.readers.signatures import HEAD_BYTES, identify_format, unreadable_error
from imagemill.pipeline.images.readers.tiff import read_tiff, read_tiff_size
from imagemill.pipeline.images.readers.tiff_page import is_camera_raw
from imagemill.pipeline.images.readers.webp import read_webp, read_webp_size

READERS = {
    "AVIF": Reader(partial(read_size_with_pillow, "AVIF"), read_avif),
    "BMP": Reader(read_bmp_size, read_bmp),
    "GIF": Reader(read_gif_size, read_gif),
    "HEIC": Reader(read_heic_size, read_heic),
    "JPEG": Reader(read_jpeg_size, read_jpeg),
    "JPEG2000": Reader(read_jpeg2000_size, read_jpeg2000),
    "JPEGXL": Reader(read_jpegxl_size, read_jpegxl),
    "PNG": Reader(read_png_size, read_png),
    "PPM": Reader(read_ppm_size, read_ppm),
    "RAW": Reader(read_raw_size, read_raw, budget_factor=2),
    "TIFF": Reader(read_tiff_size, read_tiff),
    "WEBP": Reader(read_webp_size, read_webp),
}
"""By format. Pillow supports many more formats, but each of them is an attack surface."""


def select_reader(data: bytes) -> Reader:
    """Select the reader of a file by its content.

    Raises:
        ImageError: with the class UnsupportedFormat or UnknownFormat, if no reader supports the file.
    """
    head = data[:HEAD_BYTES]
    image_format = identify_format(head)
    if image_format is None:
        raise unreadable_error(head)
    return READERS["RAW" if image_format == "TIFF" and is_camera_raw(data) else image_format]
