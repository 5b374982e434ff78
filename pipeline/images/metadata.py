"""What a file says about its picture, carried to its output where it is true of the output and has a place there.

| | JPEG | PNG | WebP | AVIF | TIFF | BMP |
|---|---|---|---|---|---|---|
| EXIF | yes | yes | yes | yes | yes | |
| XMP | yes | yes | yes | yes | yes | |
| IPTC | yes | | | | yes | |
| resolution | yes | yes | in EXIF | in EXIF | yes | yes |
| comment | yes | yes | | | | |
| PNG text | | yes | | | | |
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from imagemill.pipeline.images.exif import IPTC, Exif, carried_exif, in_tiff
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.tiff_directory import RATIONAL, SHORT, UNDEFINED
from imagemill.pipeline.images.xmp import carried_xmp, resized_xmp

COMMENT = "Comment"
"""The keyword of a PNG's text that is what other formats call the comment."""
UNTRUE_TEXT = ("raw profile type ", "exif:", "png:", "date:", "thumb::", "xml:com.adobe.xmp", "signature")
"""Beginnings of keywords, in lower case, of texts that repeat EXIF or describe another file: ImageMagick and thumbnailers
write them."""
MAX_TEXT_BYTES = 2_000_000
MAX_JPEG_SEGMENT = 65_533
MAX_JPEG_XMP = 65_504
INCH = 2
"""The unit of a resolution in EXIF."""
PHOTOSHOP, IPTC_RESOURCE = b"Photoshop 3.0\0", b"8BIM\x04\x04\0\0"


@dataclass
class Metadata:
    """What an output carries."""

    exif: Exif | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    """Records of IPTC-IIM."""
    text: dict[str, str] = field(default_factory=dict)
    """Texts of a PNG by keyword; among them the comment of another format."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, (horizontal, vertical) of the upright picture."""


def carried(opened: StoredImage, kind: Literal["keep", "strip", "strip_gps"], converted: bool) -> Metadata:
    """Collect what the upright copy of a picture may carry; metadata that is broken is left out.

    Args:
        kind: strip_gps leaves out all that may name a place: GPS tags, XMP, IPTC and texts.
        converted: whether the colours have become sRGB.
    """
    if kind == "strip":
        return Metadata()
    turned, on_its_side = opened.orientation != 1, opened.orientation >= 5
    exif = carried_exif(opened.exif, kind == "keep", converted, on_its_side)
    dpi = opened.dpi[::-1] if opened.dpi and on_its_side else opened.dpi
    dpi = valid_dpi(dpi) or valid_dpi(exif.dpi() if exif else None)
    if kind == "strip_gps":
        return Metadata(exif=exif, dpi=dpi)
    return Metadata(
        exif=exif,
        xmp=carried_xmp(opened.xmp, turned, converted),
        iptc=opened.iptc or (exif.iptc() if exif else None),
        text=carried_text(opened.text),
        dpi=dpi,
    )


def valid_dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """A resolution that every format can hold, else None."""
    return dpi if dpi and all(1 <= value <= 65_535 for value in dpi) else None


def carried_text(text: Mapping[str, str]) -> dict[str, str]:
    """The texts that are true of a copy, at most MAX_TEXT_BYTES of them."""
    left, kept = MAX_TEXT_BYTES, {}
    for key, value in text.items():
        left -= len(value)
        if left >= 0 and not key.lower().startswith(UNTRUE_TEXT):
            kept[key] = value
    return kept


def writer_options(image_format: str, metadata: Metadata, resized: bool) -> dict[str, Any]:
    """Express metadata as arguments of Pillow's writer of a format; what the format has no place for is left out.

    A TIFF gets its EXIF, XMP and IPTC from `with_metadata`.

    Args:
        resized: whether the output has another size than the source, so that places in pixels are elsewhere.
    """
    options: dict[str, Any] = {}
    exif, xmp, dpi = metadata.exif, metadata.xmp, metadata.dpi
    if xmp and resized:
        xmp = resized_xmp(xmp)
    if dpi and image_format in ("JPEG", "PNG", "BMP", "TIFF"):
        options["dpi"] = dpi
    if image_format == "PNG" and (metadata.text or xmp):
        options["pnginfo"] = png_text(metadata.text, xmp)
    if image_format not in ("JPEG", "PNG", "WEBP", "AVIF"):
        return options
    if dpi and image_format in ("WEBP", "AVIF"):
        exif = with_dpi(exif, dpi)
    if exif and image_format == "AVIF":
        # Its own orientation counts, and Pillow writes an EXIF anew that has another.
        exif = Exif({tag: entry for tag, entry in exif.main.items() if tag != Base.Orientation}, exif.below)
    if exif and not (image_format == "JPEG" and len(exif.to_bytes()) > MAX_JPEG_SEGMENT):
        options["exif"] = exif.to_bytes()
    if xmp and image_format != "PNG" and not (image_format == "JPEG" and len(xmp) > MAX_JPEG_XMP):
        options["xmp"] = xmp
    if image_format == "JPEG":
        comment = metadata.text.get(COMMENT, "").encode("utf-8")
        if 0 < len(comment) <= MAX_JPEG_SEGMENT:
            options["comment"] = comment
        if metadata.iptc and len(segment := photoshop_segment(metadata.iptc)) <= MAX_JPEG_SEGMENT + 4:
            options["extra"] = segment
    return options


def png_text(text: Mapping[str, str], xmp: bytes | None) -> PngInfo:
    """The text chunks of a PNG."""
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value, zip=len(value) > 1000)
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    return chunks


def photoshop_segment(iptc: bytes) -> bytes:
    """An APP13 segment of a JPEG that holds IPTC."""
    body = PHOTOSHOP + IPTC_RESOURCE + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", min(len(body) + 2, 0xFFFF)) + body


def with_dpi(exif: Exif | None, dpi: tuple[float, float]) -> Exif:
    """EXIF that says the resolution of a picture, for formats without another place for it."""
    exif = exif or Exif({int(Base.Orientation): (SHORT, 1, b"\1\0")}, {})
    if exif.dpi():
        return exif
    tags = (Base.XResolution, Base.YResolution)
    said = {
        int(tag): (RATIONAL, 1, struct.pack("<II", round(value * 1000), 1000)) for tag, value in zip(tags, dpi, strict=True)
    }
    return replace(exif, main=exif.main | said | {int(Base.ResolutionUnit): (SHORT, 1, struct.pack("<H", INCH))})


def with_metadata(data: bytes, metadata: Metadata, resized: bool) -> bytes:
    """A TIFF as Pillow writes it, with EXIF, XMP and IPTC; Pillow's writer leaves them out of compressed files."""
    xmp = resized_xmp(metadata.xmp) if metadata.xmp and resized else metadata.xmp
    exif = metadata.exif or Exif({}, {})
    if metadata.iptc:
        exif = replace(exif, main=exif.main | {IPTC: (UNDEFINED, len(metadata.iptc), metadata.iptc)})
    return in_tiff(data, exif, xmp) if exif.main or exif.below or xmp else data
