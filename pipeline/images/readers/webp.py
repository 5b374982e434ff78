"""WebP: Pillow decodes it; the size is read here."""

import io
import struct

from imagemill.pipeline.images.readers.pillow import read_size_with_pillow, read_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage


def parse_webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP by its first chunk; None for what is none.

    Pillow makes room for two whole canvases before it says how large a WebP is: a file of 200 bytes took 2 GB.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None


def read_webp_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the first chunk: Pillow makes room for the pixels as soon as it opens a WebP."""
    return parse_webp_size(stream.getvalue()) or read_size_with_pillow("WEBP", stream)


def read_webp(stream: io.BytesIO) -> StoredImage:
    """The first frame of a file."""
    return read_with_pillow("WEBP", stream)
