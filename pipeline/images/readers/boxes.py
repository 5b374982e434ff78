"""Boxes, the structure of AVIF, HEIC, JPEG 2000 and JPEG XL files, and the metadata in them.

Sources: ISO/IEC 15444-1, annex I; ISO/IEC 14496-12; for EXIF, ISO/IEC 23008-12, annex A.
"""

import struct
from collections.abc import Iterator

Box = tuple[bytes, int, int]
"""Type, and the offsets at which the content begins and ends."""
MAX_METADATA_BYTES = 4_000_000
"""Larger EXIF and XMP of AVIF, HEIC and JPEG XL files are left out."""


def iterate_boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets. Stops at a box that is truncated or damaged."""
    while start + 8 <= end:
        size, box_type = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        stop = start + size if size else end
        if stop > end or stop < content:
            return
        yield box_type, content, stop
        start = stop


def find_box(data: bytes, path: tuple[bytes, ...], start: int, end: int) -> Box | None:
    """Find the first box by the types of the boxes around it (outermost first) and its own."""
    for box_type, content, stop in iterate_boxes(data, start, end):
        if box_type == path[0]:
            return (box_type, content, stop) if len(path) == 1 else find_box(data, path[1:], content, stop)
    return None


def skip_exif_offset(content: bytes) -> bytes:
    """Return the EXIF in a box or an item, whose content begins with an offset."""
    return content[4 + int.from_bytes(content[:4], "big") :]
