"""Which reader a file has, by its first bytes."""

import io
from functools import partial

from pipeline.images.headers import webp_size
from pipeline.images.readers.bmp import read_bmp, size_of_bmp
from pipeline.images.readers.gif import read_gif, size_of_gif
from pipeline.images.readers.jpeg2000 import read_jpeg2000, size_of_jpeg2000
from pipeline.images.readers.opened import ImageError, Reader
from pipeline.images.readers.pillow import read_by_pillow, size_by_pillow
from pipeline.images.readers.png import read_png, size_of_png
from pipeline.images.readers.ppm import read_ppm, size_of_ppm


def by_pillow(image_format: str) -> Reader:
    """A format that Pillow reads as it is meant."""
    return Reader(partial(size_by_pillow, image_format), partial(read_by_pillow, image_format))


def size_of_webp(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the first chunk: Pillow makes room for the pixels as soon as it opens a WebP."""
    return webp_size(stream.getvalue()) or size_by_pillow("WEBP", stream)


READERS = {
    "AVIF": by_pillow("AVIF"),
    "BMP": Reader(size_of_bmp, read_bmp),
    "GIF": Reader(size_of_gif, read_gif),
    "JPEG": by_pillow("JPEG"),
    "JPEG2000": Reader(size_of_jpeg2000, read_jpeg2000),
    "PNG": Reader(size_of_png, read_png),
    "PPM": Reader(size_of_ppm, read_ppm),
    "TIFF": by_pillow("TIFF"),
    "WEBP": Reader(size_of_webp, partial(read_by_pillow, "WEBP")),
}
"""By format. Pillow knows many more, each one an attack surface."""

SIGNATURES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "AVIF": (4, (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1")),
    "BMP": (0, (b"BM",)),
    "GIF": (0, (b"GIF87a", b"GIF89a")),
    "JPEG": (0, (b"\xff\xd8\xff",)),
    "JPEG2000": (0, (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \x0d\x0a\x87\x0a")),
    "PNG": (0, (b"\x89PNG\r\n\x1a\n",)),
    "PPM": (0, tuple(b"P%c" % kind for kind in b"1234567fF")),
    "TIFF": (0, (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")),
    "WEBP": (8, (b"WEBP",)),
}
"""What stands in a file of each format from a byte on."""

UNSUPPORTED: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "HEIC": (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")),
    "JPEG XL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
}
"""What people have and no reader here reads. An AVIF may begin as "mif1" too: it is tried first."""


def reader_of(head: bytes) -> Reader:
    """The reader of a file by its first 64 bytes.

    Raises: ImageError with the class UnsupportedFormat or UnknownFormat where there is none.
    """
    for name, (place, marks) in SIGNATURES.items():
        if head.startswith(marks, place):
            return READERS[name]
    raise not_an_image(head)


def not_an_image(head: bytes) -> ImageError:
    """What is said of a file that no reader takes, by its first bytes."""
    for name, (place, marks) in UNSUPPORTED.items():
        if head.startswith(marks, place):
            return ImageError("UnsupportedFormat", f"{name} is not supported; convert it")
    return ImageError("UnknownFormat", f"not an image in a known format; begins with {head[:16]!r}")
