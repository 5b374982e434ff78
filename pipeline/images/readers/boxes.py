"""Boxes, of which the files of JPEG 2000 (ISO/IEC 15444-1, annex I) and AVIF (ISO/IEC 14496-12) consist."""

import struct
from collections.abc import Iterator

Box = tuple[bytes, int, int]
"""Type, where the content begins, and where it ends."""


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes that lie between two places. Ends before a box that is cut or damaged."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        stop = start + size if size else end
        if stop > end or stop < content:
            return
        yield kind, content, stop
        start = stop


def find(data: bytes, path: tuple[bytes, ...], start: int, end: int) -> Box | None:
    """The first box of a path of types, which lie in each other."""
    for kind, content, stop in boxes(data, start, end):
        if kind == path[0]:
            return (kind, content, stop) if len(path) == 1 else find(data, path[1:], content, stop)
    return None
