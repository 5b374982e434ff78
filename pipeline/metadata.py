"""EXIF and XMP of a source as its output may carry them: nothing in them is untrue of an upright picture."""

import re
import struct
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

# What describes the picture. The other tags of the main directory say how one file holds its pixels (a TIFF's are all here).
KEPT = (
    *(Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution, Base.ResolutionUnit),
    *(Base.Software, Base.DateTime, Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
)
# The size may change, and what "interoperability" says beside it is the colour space of the file that was.
STALE = (Base.ExifImageWidth, Base.ExifImageHeight, IFD.Interop)
SRGB = 1
XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')
MAX_XMP_BYTES = 10_000_000
# What one segment of a JPEG holds of each.
MAX_JPEG_EXIF, MAX_JPEG_XMP = 65_533, 65_504
# Before the directory in what Exif.tobytes gives: a mark and the header of a TIFF.
EXIF_HEAD_BYTES = 6 + 8


def carried_exif(image: Image.Image, gps: bool, converted: bool) -> bytes | None:
    """The EXIF of a loaded image for its upright copy; None where there is none, or none that can be understood.

    Args: gps: whether the place is kept; converted: whether the pixels have become sRGB.
    """
    try:
        source, exif = image.getexif(), Image.Exif()
        exif.endian = source.endian
        for tag in KEPT:
            if tag in source:
                exif[tag] = source[tag]
        for directory in (IFD.Exif, IFD.GPSInfo) if gps else (IFD.Exif,):
            if values := {tag: value for tag, value in source.get_ifd(directory).items() if tag not in STALE}:
                exif[directory] = values
        if not len(exif):
            return None
        if converted and IFD.Exif in exif:
            exif[IFD.Exif][Base.ColorSpace] = SRGB
        exif[Base.Orientation] = 1
        return exif.tobytes()
    except Exception:  # noqa: BLE001 - what Pillow raises on odd EXIF is open-ended, and the picture is what counts
        return None


def carried_xmp(image: Image.Image) -> bytes | None:
    """The XMP of a loaded image for its upright copy."""
    xmp = image.info.get("xmp")
    if not isinstance(xmp, bytes) or not 0 < len(xmp) <= MAX_XMP_BYTES:
        return None
    return XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def writer_options(image_format: str, exif: bytes | None, xmp: bytes | None) -> dict[str, Any]:
    """What Pillow's writer of a format takes for EXIF and XMP; what the format has no place for is left out.

    For a TIFF it is nothing: see `in_tiff`.
    """
    if image_format == "JPEG":
        exif = exif if exif and len(exif) <= MAX_JPEG_EXIF else None
        xmp = xmp if xmp and len(xmp) <= MAX_JPEG_XMP else None
    if image_format not in ("JPEG", "PNG", "WEBP", "AVIF"):
        return {}
    options: dict[str, Any] = {"exif": exif} if exif else {}
    if xmp and image_format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    elif xmp:
        options["xmp"] = xmp
    return options


def in_tiff(data: bytes, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A TIFF as Pillow writes it, with EXIF and XMP.

    Pillow hands tags to libtiff, which takes no directories below the main one and fails on odd values. So a second main
    directory is written behind the file, with the first one's entries and those of the EXIF.
    """
    tags = Image.Exif()
    tags.load(exif or b"")
    order = tags.endian = "<" if data.startswith(b"II") else ">"
    if xmp:
        tags[Base.XMLPacket] = xmp
    data += b"\0" * (len(data) % 2)
    added = tags.tobytes(len(data))[EXIF_HEAD_BYTES:]
    added += b"\0" * (len(added) % 2)
    entries = entries_of(data, struct.unpack_from(f"{order}I", data, 4)[0], order) | entries_of(added, 0, order)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    start = struct.pack(f"{order}I", len(data) + len(added))
    return b"".join((data[:4], start, memoryview(data)[8:], added, directory))


def entries_of(data: bytes, start: int, order: str) -> dict[int, bytes]:
    """The entries of a TIFF directory by their tags, as they stand there."""
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = (data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12))
    return {struct.unpack_from(f"{order}H", entry)[0]: entry for entry in entries}
