"""Read and write TIFF directories (IFDs), which describe the pages of a TIFF and hold EXIF."""

import struct
from collections.abc import Container

import numpy as np

TIFF_SIGNATURES = {
    # Some programs store the number 42 in the wrong byte order.
    **dict.fromkeys((b"II*\0", b"II\0*"), ("<", False)),
    **dict.fromkeys((b"MM\0*", b"MM*\0"), (">", False)),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
"""Byte order, and whether the file is a BigTIFF, by the first four bytes."""
BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7
VALUE_TYPES = {
    **{1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4)},
    **{11: (4, 4), 12: (8, 8), 13: (4, 4)},
}
"""By type number (TIFF 6.0): bytes per value, and bytes per unit whose byte order matters."""
BIGTIFF_VALUE_TYPES = {16: (8, 8), 17: (8, 8), 18: (8, 8)}
"""Like VALUE_TYPES, for the types that only a BigTIFF has."""
MAX_DIRECTORY_BYTES = 2_000_000

Entries = dict[int, tuple[int, int, bytes]]
"""A directory: (type, count, value in little-endian order) by tag."""


def read_tiff_header(data: bytes) -> tuple[str, bool, int]:
    """Read the header of a TIFF.

    Returns:
        Byte order ("<" or ">"), whether the file is a BigTIFF, and the position of the offset of the first directory.

    Raises:
        ValueError: if the bytes are not a TIFF.
    """
    if data[:4] not in TIFF_SIGNATURES:
        raise ValueError("not a TIFF")
    order, is_big = TIFF_SIGNATURES[data[:4]]
    return order, is_big, 8 if is_big else 4


def read_directory(
    tiff: bytes,
    start: int,
    order: str,
    tags: Container[int] = range(1 << 16),
    max_bytes: int = MAX_DIRECTORY_BYTES,
    is_big: bool = False,
) -> Entries:
    """Read entries of a directory. Entries whose values lie outside the file are skipped.

    Args:
        tiff: the file, or a block of EXIF.
        start: offset of the directory.
        order: byte order of the file, "<" or ">".
        tags: the tags to read.
        max_bytes: limit of the size of all values together.
        is_big: whether the file is a BigTIFF.

    Raises:
        struct.error: if the directory lies outside the file.
        ValueError: if the values exceed `max_bytes`.
    """
    entries: Entries = {}
    types = VALUE_TYPES | BIGTIFF_VALUE_TYPES if is_big else VALUE_TYPES
    count_format, offset_format, inline_bytes = (f"{order}Q", f"{order}Q", 8) if is_big else (f"{order}H", f"{order}I", 4)
    (count,) = struct.unpack_from(count_format, tiff, start)
    entry = struct.Struct(f"{order}HH{offset_format[1]}")
    first, step = start + struct.calcsize(count_format), entry.size + inline_bytes
    for position in range(first, first + step * min(count, 1 << 16), step):
        tag, value_type, value_count = entry.unpack_from(tiff, position)
        size, unit = types.get(value_type, (0, 1))
        size *= value_count
        offset = position + entry.size
        if size > inline_bytes:
            (offset,) = struct.unpack_from(offset_format, tiff, offset)
        if tag not in tags or not 0 < size <= len(tiff) - offset:
            continue
        max_bytes -= size
        if max_bytes < 0:
            raise ValueError("the values of a TIFF directory are too large")
        units = np.frombuffer(tiff, f"{order}u{unit}", size // unit, offset)
        entries[tag] = value_type, value_count, units.astype(f"<u{unit}").tobytes()
    return entries


def build_directory(entries: Entries, start: int) -> bytes:
    """Build a little-endian directory for the offset `start`, followed by its values.

    The result has an even number of bytes.
    """
    table, values = bytearray(struct.pack("<H", len(entries))), bytearray()
    values_start = start + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        value_type, count, value = entries[tag]
        is_inline = len(value) <= 4
        field = value.ljust(4, b"\0") if is_inline else struct.pack("<I", values_start + len(values))
        table += struct.pack("<HHI", tag, value_type, count) + field
        if not is_inline:
            values += value + b"\0" * (len(value) % 2)
    return bytes(table + bytes(4) + values)


def build_directories(main: Entries, sub_directories: dict[int, Entries], start: int) -> bytes:
    """Build a main directory for the offset `start`, followed by its sub-directories.

    Args:
        main: the entries of the main directory.
        sub_directories: entries by the tag of the main directory that points at them.
        start: offset of the main directory.
    """
    main = main | {tag: (LONG, 1, bytes(4)) for tag in sub_directories}
    end, parts = start + len(build_directory(main, start)), b""
    for tag, entries in sub_directories.items():
        main[tag] = LONG, 1, struct.pack("<I", end + len(parts))
        parts += build_directory(entries, end + len(parts))
    return build_directory(main, start) + parts
