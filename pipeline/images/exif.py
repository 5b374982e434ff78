"""Correct the EXIF of a source, so that everything in it is true of its upright output.

Pillow reads EXIF well, but rewriting it loses text outside ASCII and the types of unknown tags, and its compressed
TIFFs contain no EXIF at all. So directories are copied here, value by value.
"""

import struct
from dataclasses import dataclass

import numpy as np
from PIL.ExifTags import GPS, IFD, Base

from imagemill.pipeline.images.tiff_directory import (
    BIGTIFF_VALUE_TYPES,
    BYTE,
    LONG,
    RATIONAL,
    SHORT,
    VALUE_TYPES,
    Entries,
    build_directories,
    read_directory,
    read_tiff_header,
)

COPIED_TAGS = (
    *(Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution, Base.ResolutionUnit),
    *(Base.Software, Base.DateTime, Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
)
"""Tags of the main directory that describe the image. The other tags describe how one file stores its pixels (in a
TIFF, all of those are in this directory), and the directory after the main one belongs to the thumbnail."""
SUBJECT_AREA = 0x9214  # Pillow has no name for this tag.
OUTDATED_TAGS = (
    # The output is upright and may be resized, so sizes and positions in pixels no longer hold, and neither does the
    # number of pixels per inch of the sensor. The interoperability directory only names the colour space of the
    # source file.
    *(Base.ExifImageWidth, Base.ExifImageHeight, SUBJECT_AREA, Base.SubjectLocation, IFD.Interop),
    *(Base.FocalPlaneXResolution, Base.FocalPlaneYResolution, Base.FocalPlaneResolutionUnit),
    # These tags describe the sensor, as numbers in the byte order of the source file.
    *(Base.CFAPattern, Base.OECF, Base.SpatialFrequencyResponse, Base.DeviceSettingDescription),
)
"""Tags of the EXIF and GPS directories that are not true of the output."""
IPTC = 33723
"""The TIFF tag of IPTC-IIM records."""
TEXT_TAGS = {int(IFD.Exif): (Base.UserComment,), int(IFD.GPSInfo): (GPS.GPSProcessingMethod, GPS.GPSAreaInformation)}
"""By directory: tags whose value begins with the name of its text encoding, in 8 bytes."""
UTF_16 = b"UNICODE\0"


@dataclass(frozen=True)
class Exif:
    """The EXIF of an output."""

    main: Entries
    sub_directories: dict[int, Entries]
    """The EXIF and GPS directories, by the tag of the main directory that points at them."""

    def to_bytes(self) -> bytes:
        """Return the block of EXIF that image files contain, with its signature."""
        main = {tag: entry for tag, entry in self.main.items() if tag != IPTC}
        return b"Exif\0\0II*\0\x08\0\0\0" + build_directories(main, self.sub_directories, 8)

    @property
    def iptc(self) -> bytes | None:
        """The IPTC records of a TIFF."""
        return self.main.get(IPTC, (0, 0, None))[2]

    def read_dpi(self) -> tuple[float, float] | None:
        """Return pixels per inch, (horizontal, vertical); None if missing or invalid."""
        resolutions = []
        for tag in (Base.XResolution, Base.YResolution):
            value_type, count, value = self.main.get(tag, (0, 0, b""))
            numerator, denominator = struct.unpack("<II", value) if (value_type, count) == (RATIONAL, 1) else (0, 0)
            if not denominator:
                return None
            resolutions.append(numerator / denominator)
        unit = self.main.get(Base.ResolutionUnit, (SHORT, 1, b"\2\0"))[2]
        scale = {b"\2\0": 1.0, b"\3\0": 2.54}.get(unit)
        return (resolutions[0] * scale, resolutions[1] * scale) if scale else None


def correct_exif(block: bytes | None, keep_gps: bool, is_converted: bool, is_on_its_side: bool = False) -> Exif | None:
    """Correct the EXIF of a source for its upright output.

    Args:
        block: the EXIF of a file; for a TIFF, the whole file.
        keep_gps: whether to keep the GPS directory, and IPTC, which may name a place too.
        is_converted: whether the colours were converted to sRGB.
        is_on_its_side: whether the image was rotated by 90 degrees.

    Returns:
        None if there is no EXIF, or none that can be read.
    """
    tiff = (block or b"").removeprefix(b"Exif\0\0")
    try:
        order, is_big, position = read_tiff_header(tiff)
        pointers = (IFD.Exif, IFD.GPSInfo) if keep_gps else (IFD.Exif,)
        (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", tiff, position)
        tags = {*COPIED_TAGS, *pointers, *((IPTC,) if keep_gps else ())}
        main = read_directory(tiff, start, order, tags, is_big=is_big)
        sub_directories: dict[int, Entries] = {}
        for pointer in pointers:
            value_type, count, offset = main.pop(pointer, (0, 0, b""))
            if value_type in (LONG, *BIGTIFF_VALUE_TYPES) and count == 1:
                entries = read_directory(tiff, int.from_bytes(offset, "little"), order, is_big=is_big)
                entries = {tag: e for tag, e in entries.items() if tag not in OUTDATED_TAGS and e[0] in VALUE_TYPES}
                texts = {tag: to_little_endian(entries[tag], order) for tag in TEXT_TAGS[int(pointer)] if tag in entries}
                sub_directories[int(pointer)] = entries | texts
    except (struct.error, ValueError):
        return None
    # Outputs are never BigTIFFs.
    main = {tag: entry for tag, entry in main.items() if entry[0] in VALUE_TYPES}
    if is_converted and Base.ColorSpace in sub_directories.get(IFD.Exif, {}):
        sub_directories[IFD.Exif][Base.ColorSpace] = (SHORT, 1, b"\1\0")  # sRGB
    if is_on_its_side and all(tag in main for tag in (Base.XResolution, Base.YResolution)):
        main[Base.XResolution], main[Base.YResolution] = main[Base.YResolution], main[Base.XResolution]
    if not main and not sub_directories:
        return None
    return Exif(main | {int(Base.Orientation): (SHORT, 1, b"\1\0")}, sub_directories)


def to_little_endian(entry: tuple[int, int, bytes], order: str) -> tuple[int, int, bytes]:
    """Convert UTF-16 text to little-endian order, which outputs use. Keep other text unchanged.

    Programs write big-endian text into files of either byte order, so the order is guessed from the text if possible:
    in most texts, the upper byte of most characters is zero.

    Args:
        entry: of a tag in TEXT_TAGS.
        order: byte order of the file, "<" or ">".
    """
    value_type, _, value = entry
    if not value.startswith(UTF_16):
        return entry
    text = value[len(UTF_16) :]
    text = text[: len(text) // 2 * 2]
    even_zeros, odd_zeros = text[0::2].count(0), text[1::2].count(0)
    is_big_endian = (
        text.startswith(b"\xfe\xff") or even_zeros > odd_zeros or (even_zeros == odd_zeros and order == ">")
    ) and not text.startswith(b"\xff\xfe")
    if not is_big_endian:
        return entry
    swapped = np.frombuffer(text, ">u2").astype("<u2").tobytes()
    return value_type, len(UTF_16) + len(swapped), UTF_16 + swapped


def add_to_tiff(data: bytes, exif: Exif | None, xmp: bytes | None) -> bytes:
    """Add EXIF and XMP to a little-endian TIFF that Pillow wrote.

    A second main directory is appended to the file and replaces the first.
    """
    if not data.startswith(b"II*\0"):
        return data
    main = read_directory(data, struct.unpack_from("<I", data, 4)[0], "<", max_bytes=len(data))
    main |= exif.main if exif else {}
    if xmp:
        main[Base.XMLPacket] = BYTE, len(xmp), xmp
    start = len(data) + len(data) % 2
    directories = build_directories(main, exif.sub_directories if exif else {}, start)
    return b"".join((data[:4], struct.pack("<I", start), memoryview(data)[8:], bytes(start - len(data)), directories))
