"""EXIF and XMP of a source as its output may carry them: nothing in them is untrue of an upright picture.

Pillow reads EXIF well, but what it writes again has lost letters outside ASCII and the types of what it does not know, and
its TIFFs have none of it where they are compressed. So directories are copied here, value by value as they are.
"""

import re
import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from pipeline.images.headers import tiff_head

# What describes the picture. The other tags of the main directory say how one file holds its pixels (a TIFF's are all here),
# and the directory behind it is the thumbnail's.
KEPT = (
    *(Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution, Base.ResolutionUnit),
    *(Base.Software, Base.DateTime, Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
)
SUBJECT_AREA = 0x9214  # Pillow has no name for it.
# The picture is turned and its size may change: sizes and places in pixels would be of another one, and so would the number
# of pixels on an inch of the sensor. "Interoperability" says little but the colour space of the file that was.
STALE = (
    *(Base.ExifImageWidth, Base.ExifImageHeight, SUBJECT_AREA, Base.SubjectLocation, IFD.Interop),
    *(Base.FocalPlaneXResolution, Base.FocalPlaneYResolution, Base.FocalPlaneResolutionUnit),
)
BYTE, SHORT, LONG, LONG8 = 1, 3, 4, 16
# Bytes of a value, and of the units in it that have an order, by the types of TIFF 6.0.
TYPES = {1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4)}
TYPES |= {11: (4, 4), 12: (8, 8), 13: (4, 4)}
# Those that a BigTIFF has besides.
BIG_TYPES = {16: (8, 8), 17: (8, 8), 18: (8, 8)}
XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')
XMP_NAMES = rb"(tiff:Image(?:Width|Length)|exif:(?:Pixel[XY]Dimension|Subject(?:Area|Location)|FocalPlane\w+))"
XMP_STALE = re.compile(rb'\s%b="[^"]*"|<%b>.{0,300}?</\2>' % (XMP_NAMES, XMP_NAMES), re.DOTALL)
"""What is in STALE, as attributes and as elements."""
MAX_EXIF_BYTES, MAX_XMP_BYTES = 2_000_000, 10_000_000
# What one segment of a JPEG holds of each.
MAX_JPEG_EXIF, MAX_JPEG_XMP = 65_533, 65_504

Entries = dict[int, tuple[int, int, bytes]]
"""A directory: (type, count, value in little-endian order) by tag."""


@dataclass(frozen=True)
class Exif:
    """What is carried, and the directories below it by the tags that point at them."""

    main: Entries
    below: dict[int, Entries]

    def to_bytes(self) -> bytes:
        """As files hold it, with its mark."""
        return b"Exif\0\0II*\0\x08\0\0\0" + directories(self.main, self.below, 8)


def carried_exif(block: bytes | None, gps: bool, converted: bool) -> Exif | None:
    """The EXIF of a source for its upright copy; None where there is none, or none that can be understood.

    Args:
        block: the EXIF of a file, or the file if it is a TIFF.
        gps: whether the place is kept.
        converted: whether the pixels have become sRGB.
    """
    tiff = (block or b"").removeprefix(b"Exif\0\0")
    try:
        order, big, at = tiff_head(tiff)
        pointers = (IFD.Exif, IFD.GPSInfo) if gps else (IFD.Exif,)
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", tiff, at)
        main = entries_at(tiff, start, order, {*KEPT, *pointers}, big=big)
        below = {}
        for pointer in pointers:
            kind, count, place = main.pop(pointer, (0, 0, b""))
            if (kind, count) in ((LONG, 1), (LONG8, 1)):
                entries = entries_at(tiff, int.from_bytes(place, "little"), order, big=big)
                # What is written is no BigTIFF.
                carried = {tag: entry for tag, entry in entries.items() if tag not in STALE and entry[0] in TYPES}
                below[int(pointer)] = carried
    except (struct.error, ValueError):
        return None
    main = {tag: entry for tag, entry in main.items() if entry[0] in TYPES}
    if converted and Base.ColorSpace in below.get(IFD.Exif, {}):
        below[IFD.Exif][Base.ColorSpace] = (SHORT, 1, b"\1\0")  # sRGB
    return Exif(main | {int(Base.Orientation): (SHORT, 1, b"\1\0")}, below) if main or below else None


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


def carried_xmp(xmp: bytes | None) -> bytes | None:
    """The XMP of a source for its upright copy; None where there is none, or too much of it."""
    if not xmp or len(xmp) > MAX_XMP_BYTES:
        return None
    return XMP_ORIENTATION.sub(rb"\g<1>1", XMP_STALE.sub(b"", xmp))


def writer_options(image_format: str, exif: Exif | None, xmp: bytes | None) -> dict[str, Any]:
    """What Pillow's writer of a format takes for EXIF and XMP; what the format has no place for is left out.

    For a TIFF it is nothing: see `in_tiff`.
    """
    if image_format not in ("JPEG", "PNG", "WEBP", "AVIF"):
        return {}
    options: dict[str, Any] = {}
    if exif and image_format == "AVIF":
        # Its own orientation counts, and Pillow writes an EXIF anew that has another.
        exif = Exif({tag: entry for tag, entry in exif.main.items() if tag != Base.Orientation}, exif.below)
    if exif and not (image_format == "JPEG" and len(exif.to_bytes()) > MAX_JPEG_EXIF):
        options["exif"] = exif.to_bytes()
    if xmp and image_format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    elif xmp and not (image_format == "JPEG" and len(xmp) > MAX_JPEG_XMP):
        options["xmp"] = xmp
    return options


def in_tiff(data: bytes, exif: Exif | None, xmp: bytes | None) -> bytes:
    """A little-endian TIFF as Pillow writes it, with EXIF and XMP.

    A second main directory, behind the file, takes the place of the first.
    """
    if not data.startswith(b"II*\0"):
        return data
    main = entries_at(data, struct.unpack_from("<I", data, 4)[0], "<", most=len(data))
    main |= exif.main if exif else {}
    if xmp:
        main[Base.XMLPacket] = BYTE, len(xmp), xmp
    start = len(data) + len(data) % 2
    behind = directories(main, exif.below if exif else {}, start)
    return b"".join((data[:4], struct.pack("<I", start), memoryview(data)[8:], bytes(start - len(data)), behind))
