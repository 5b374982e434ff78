"""WebP: libwebp decodes it through Pillow; the size is read from the header here.

Pillow allocates two full canvases before it reports the size of a WebP: a file of 200 bytes took 2 GB.
"""

import io
import struct

from imagemill.pipeline.images.readers.pillow import read_size_with_pillow, read_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage


def parse_webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the first chunk of a WebP; None if it is not valid."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    chunk_type, head = data[12:16], data[20:30].ljust(10, b"\0")
    if chunk_type == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if chunk_type == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    if chunk_type == b"VP8 ":
        width, height = struct.unpack("<HH", head[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None


def read_webp_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the header."""
    return parse_webp_size(stream.getvalue()) or read_size_with_pillow("WEBP", stream)


def read_webp(stream: io.BytesIO) -> StoredImage:
    """Decode the first frame."""
    return read_with_pillow("WEBP", stream)
