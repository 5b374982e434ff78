"""EXIF of a source as its output may carry it: nothing in it is untrue of an upright picture.

Pillow reads EXIF well, but what it writes again has lost letters outside ASCII and the types of what it does not know, and
its TIFFs have none of it where they are compressed. So directories are copied here, value by value as they are.
"""

import struct
from dataclasses import dataclass

import numpy as np
from PIL.ExifTags import GPS, IFD, Base

from imagemill.pipeline.images.tiff_directory import (
    BIG_TYPES,
    BYTE,
    LONG,
    RATIONAL,
    SHORT,
    TYPES,
    Entries,
    directories,
    entries_at,
    tiff_head,
)

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
    # These describe a sensor, in numbers whose byte order is that of their file.
    *(Base.CFAPattern, Base.OECF, Base.SpatialFrequencyResponse, Base.DeviceSettingDescription),
)

IPTC = 33723
"""The tag of IPTC-IIM in a TIFF."""

TEXTS = {int(IFD.Exif): (Base.UserComment,), int(IFD.GPSInfo): (GPS.GPSProcessingMethod, GPS.GPSAreaInformation)}
"""Tags whose value names its encoding in 8 bytes before the text."""

UTF_16 = b"UNICODE\0"


@dataclass(frozen=True)
class Exif:
    """What is carried, and the directories below it by the tags that point at them."""

    main: Entries
    below: dict[int, Entries]

    def to_bytes(self) -> bytes:
        """As files hold it, with its mark."""
        main = {tag: entry for tag, entry in self.main.items() if tag != IPTC}
        return b"Exif\0\0II*\0\x08\0\0\0" + directories(main, self.below, 8)

    def iptc(self) -> bytes | None:
        """What a TIFF has of IPTC."""
        return self.main.get(IPTC, (0, 0, None))[2]

    def dpi(self) -> tuple[float, float] | None:
        """Pixels per inch, (horizontal, vertical)."""
        values = []
        for tag in (Base.XResolution, Base.YResolution):
            kind, count, value = self.main.get(tag, (0, 0, b""))
            over, under = struct.unpack("<II", value) if (kind, count) == (RATIONAL, 1) else (0, 0)
            if not under:
                return None
            values.append(over / under)
        unit = self.main.get(Base.ResolutionUnit, (SHORT, 1, b"\2\0"))[2]
        scale = {b"\2\0": 1.0, b"\3\0": 2.54}.get(unit)
        return (values[0] * scale, values[1] * scale) if scale else None


def carried_exif(block: bytes | None, gps: bool, converted: bool, on_its_side: bool = False) -> Exif | None:
    """Correct the EXIF of a source for its upright copy; None where there is none, or none that can be understood.

    Args:
        block: the EXIF of a file, or the file if it is a TIFF.
        gps: whether the place is kept; IPTC may name it too.
        converted: whether the pixels have become sRGB.
        on_its_side: whether the picture was turned by 90 degrees.
    """
    tiff = (block or b"").removeprefix(b"Exif\0\0")
    try:
        order, big, at = tiff_head(tiff)
        pointers = (IFD.Exif, IFD.GPSInfo) if gps else (IFD.Exif,)
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", tiff, at)
        main = entries_at(tiff, start, order, {*KEPT, *pointers, *((IPTC,) if gps else ())}, big=big)
        below = {}
        for pointer in pointers:
            kind, count, place = main.pop(pointer, (0, 0, b""))
            if kind in (LONG, *BIG_TYPES) and count == 1:
                entries = entries_at(tiff, int.from_bytes(place, "little"), order, big=big)
                kept = {tag: entry for tag, entry in entries.items() if tag not in STALE and entry[0] in TYPES}
                texts = {tag: text_in_order(kept[tag], order) for tag in TEXTS[int(pointer)] if tag in kept}
                below[int(pointer)] = kept | texts
    except (struct.error, ValueError):
        return None
    # Outputs are no BigTIFFs.
    main = {tag: entry for tag, entry in main.items() if entry[0] in TYPES}
    if converted and Base.ColorSpace in below.get(IFD.Exif, {}):
        below[IFD.Exif][Base.ColorSpace] = (SHORT, 1, b"\1\0")  # sRGB
    resolutions = (Base.XResolution, Base.YResolution)
    if on_its_side and all(tag in main for tag in resolutions):
        main[Base.XResolution], main[Base.YResolution] = main[Base.YResolution], main[Base.XResolution]
    return Exif(main | {int(Base.Orientation): (SHORT, 1, b"\1\0")}, below) if main or below else None


def text_in_order(entry: tuple[int, int, bytes], order: str) -> tuple[int, int, bytes]:
    """The entry of a text whose UTF-16, if it is that, has the little-endian order that is written here.

    Programs write big-endian text into files of any order, so the text decides where it can: in most texts the upper byte
    of most characters is zero.

    Args:
        order: of the file, "<" or ">".
    """
    kind, _, value = entry
    if not value.startswith(UTF_16):
        return entry
    text = value[len(UTF_16) :]
    text = text[: len(text) // 2 * 2]
    upper, lower = text[0::2].count(0), text[1::2].count(0)
    big_endian = text.startswith(b"\xfe\xff") or upper > lower or (upper == lower and order == ">")
    if not big_endian or text.startswith(b"\xff\xfe"):
        return entry
    swapped = np.frombuffer(text, ">u2").astype("<u2").tobytes()
    return kind, len(UTF_16) + len(swapped), UTF_16 + swapped


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
