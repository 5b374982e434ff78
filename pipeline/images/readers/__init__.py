"""Which reader a file has, by its first bytes."""

import io
from functools import partial

from imagemill.pipeline.images.headers import webp_size
from imagemill.pipeline.images.readers.avif import read_avif
from imagemill.pipeline.images.readers.bmp import read_bmp, size_of_bmp
from imagemill.pipeline.images.readers.gif import read_gif, size_of_gif
from imagemill.pipeline.images.readers.jpeg import read_jpeg, size_of_jpeg
from imagemill.pipeline.images.readers.jpeg2000 import read_jpeg2000, size_of_jpeg2000
from imagemill.pipeline.images.readers.opened import ImageError, Reader
from imagemill.pipeline.images.readers.pillow import read_by_pillow, size_by_pillow
from imagemill.pipeline.images.readers.png import read_png, size_of_png
from imagemill.pipeline.images.readers.ppm import read_ppm, size_of_ppm
from imagemill.pipeline.images.readers.tiff import read_tiff, size_of_tiff
from imagemill.pipeline.images.readers.unsupported import FORMATS, unsupported


def size_of_webp(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the first chunk: Pillow makes room for the pixels as soon as it opens a WebP."""
    return webp_size(stream.getvalue()) or size_by_pillow("WEBP", stream)


READERS = {
    "AVIF": Reader(partial(size_by_pillow, "AVIF"), read_avif),
    "BMP": Reader(size_of_bmp, read_bmp),
    "GIF": Reader(size_of_gif, read_gif),
    "JPEG": Reader(size_of_jpeg, read_jpeg),
    "JPEG2000": Reader(size_of_jpeg2000, read_jpeg2000),
    "PNG": Reader(size_of_png, read_png),
    "PPM": Reader(size_of_ppm, read_ppm),
    "TIFF": Reader(size_of_tiff, read_tiff),
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

HEAD_BYTES = 512
"""Of a file, what its format is told by."""
AVIF_BRANDS = (b"avif", b"avis")


def format_of(head: bytes) -> str | None:
    """The name in READERS of a file's format, by its first HEAD_BYTES bytes."""
    for name, (place, marks) in SIGNATURES.items():
        if not head.startswith(marks, place) or head.startswith(FORMATS["Canon raw (CR2)"][1]):
            continue
        brands = head[8 : max(16, int.from_bytes(head[:4], "big"))]
        if name == "AVIF" and not any(brand in brands for brand in AVIF_BRANDS):
            continue
        return name
    return None


def reader_of(head: bytes) -> Reader:
    """The reader of a file by its first HEAD_BYTES bytes.

    Raises: ImageError with the class UnsupportedFormat or UnknownFormat where there is none.
    """
    name = format_of(head)
    if name is None:
        raise not_an_image(head)
    return READERS[name]


def not_an_image(head: bytes) -> ImageError:
    """What is said of a file that no reader takes, or whose reader knows nothing of it, by its first bytes."""
    if name := format_of(head):
        return ImageError("BrokenImage", f"{name} whose header is damaged or cut")
    unknown = ImageError("UnknownFormat", f"not an image in a known format; begins with {head[:16]!r}")
    return unsupported(head) or unknown
