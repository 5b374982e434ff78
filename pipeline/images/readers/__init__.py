"""The readers of the supported formats."""

from functools import partial

from imagemill.pipeline.images.readers.avif import read_avif
from imagemill.pipeline.images.readers.bmp import read_bmp, size_of_bmp
from imagemill.pipeline.images.readers.gif import read_gif, size_of_gif
from imagemill.pipeline.images.readers.jpeg import read_jpeg, size_of_jpeg
from imagemill.pipeline.images.readers.jpeg2000 import read_jpeg2000, size_of_jpeg2000
from imagemill.pipeline.images.readers.pillow import size_by_pillow
from imagemill.pipeline.images.readers.png import read_png, size_of_png
from imagemill.pipeline.images.readers.ppm import read_ppm, size_of_ppm
from imagemill.pipeline.images.readers.reader import Reader
from imagemill.pipeline.images.readers.signatures import format_of, not_an_image
from imagemill.pipeline.images.readers.tiff import read_tiff, size_of_tiff
from imagemill.pipeline.images.readers.webp import read_webp, size_of_webp

READERS = {
    "AVIF": Reader(partial(size_by_pillow, "AVIF"), read_avif),
    "BMP": Reader(size_of_bmp, read_bmp),
    "GIF": Reader(size_of_gif, read_gif),
    "JPEG": Reader(size_of_jpeg, read_jpeg),
    "JPEG2000": Reader(size_of_jpeg2000, read_jpeg2000),
    "PNG": Reader(size_of_png, read_png),
    "PPM": Reader(size_of_ppm, read_ppm),
    "TIFF": Reader(size_of_tiff, read_tiff),
    "WEBP": Reader(size_of_webp, read_webp),
}
"""By format. Pillow knows many more, each one an attack surface."""


def reader_of(head: bytes) -> Reader:
    """The reader of a file by its first HEAD_BYTES bytes.

    Raises: ImageError with the class UnsupportedFormat or UnknownFormat where there is none.
    """
    name = format_of(head)
    if name is None:
        raise not_an_image(head)
    return READERS[name]
