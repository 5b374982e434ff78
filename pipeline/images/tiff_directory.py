"""Read and write TIFF directories, which hold both the pages of a TIFF and EXIF."""

import struct
from collections.abc import Container

import numpy as np

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


BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7

# Bytes of a value, and of the units in it that have an order, by the types of TIFF 6.0.
TYPES = {1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4)}
TYPES |= {11: (4, 4), 12: (8, 8), 13: (4, 4)}

# Those that a BigTIFF has besides.
BIG_TYPES = {16: (8, 8), 17: (8, 8), 18: (8, 8)}

MAX_EXIF_BYTES = 2_000_000

Entries = dict[int, tuple[int, int, bytes]]
"""A directory: (type, count, value in little-endian order) by tag."""


def entries_at(
    tiff: bytes,
    start: int,
    order: str,
    wanted: Container[int] = range(1 << 16),
    most: int = MAX_EXIF_BYTES,
    big: bool = False,
) -> Entries:
    """The wanted tags of the directory that begins at `start`; values that are not in the file are left out.

    Args:
        most: the number of bytes that all wanted values may have.
        big: whether the file is a BigTIFF.

    Raises: struct.error when it is not there, ValueError when its values come to more than `most` bytes.
    """
    entries: Entries = {}
    types = TYPES | BIG_TYPES if big else TYPES
    counts, offsets, inside = (f"{order}Q", f"{order}Q", 8) if big else (f"{order}H", f"{order}I", 4)
    (count,) = struct.unpack_from(counts, tiff, start)
    entry = struct.Struct(f"{order}HH{offsets[1]}")
    first, step = start + struct.calcsize(counts), entry.size + inside
    for at in range(first, first + step * min(count, 1 << 16), step):
        tag, kind, values = entry.unpack_from(tiff, at)
        size, unit = types.get(kind, (0, 1))
        size *= values
        place = at + entry.size if size <= inside else struct.unpack_from(offsets, tiff, at + entry.size)[0]
        if tag not in wanted or not 0 < size <= len(tiff) - place:
            continue
        most -= size
        if most < 0:
            raise ValueError("a directory of too many bytes")
        units = np.frombuffer(tiff, f"{order}u{unit}", size // unit, place)
        entries[tag] = kind, values, units.astype(f"<u{unit}").tobytes()
    return entries


def directory(entries: Entries, start: int) -> bytes:
    """A directory for the place `start`, with its values behind it; an even number of bytes."""
    table, values = bytearray(struct.pack("<H", len(entries))), bytearray()
    behind = start + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        kind, count, value = entries[tag]
        where = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", behind + len(values))
        table += struct.pack("<HHI", tag, kind, count) + where
        if len(value) > 4:
            values += value + b"\0" * (len(value) % 2)
    return bytes(table + bytes(4) + values)


def directories(main: Entries, below: dict[int, Entries], start: int) -> bytes:
    """A main directory for the place `start`, and those below it behind."""
    main = main | {tag: (LONG, 1, bytes(4)) for tag in below}
    behind, parts = start + len(directory(main, start)), b""
    for tag, entries in below.items():
        main[tag] = LONG, 1, struct.pack("<I", behind + len(parts))
        parts += directory(entries, behind + len(parts))
    return directory(main, start) + parts
