"""What an image file says in its first bytes, read here where Pillow does not tell, or does too much before it tells."""

import struct

from PIL import Image

BITS_PER_SAMPLE = 258


def webp_size(data: bytes) -> tuple[int, int] | None:
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


def depth_of(image: Image.Image) -> int:
    """Bits of a sample in the file: Pillow gives 8 of what has more, but for gray in 16."""
    if image.mode == "1":
        return 1
    if image.format == "TIFF":
        deepest = max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
        return 16 if deepest == 16 or image.mode.startswith("I") else 8
    return 16 if image.mode.startswith("I") else 8


TIFF_HEADS = {
    # Some programs have turned the number 42 as well as the byte order.
    **dict.fromkeys((b"II*\0", b"II\0*"), ("<", False)),
    **dict.fromkeys((b"MM\0*", b"MM*\0"), (">", False)),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
"""Byte order, and whether it is a BigTIFF, by the first four bytes."""


def tiff_head(data: bytes) -> tuple[str, bool, int]:
    """(byte order, whether it is a BigTIFF, where the offset of the first directory stands) of a TIFF.

    Raises: ValueError for bytes that are not a TIFF.
    """
    if data[:4] not in TIFF_HEADS:
        raise ValueError("not a TIFF")
    order, big = TIFF_HEADS[data[:4]]
    return order, big, 8 if big else 4
