"""Select the metadata of an output: what is true of it, and what its format can store (docs/formats.md has the table)."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from imagemill.pipeline.images.exif import IPTC, Exif, add_to_tiff, correct_exif
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.tiff_directory import RATIONAL, SHORT, UNDEFINED
from imagemill.pipeline.images.xmp import correct_xmp, remove_regions

COMMENT = "Comment"
"""The PNG keyword of a text that other formats call the comment."""
DROPPED_TEXTS = ("raw profile type ", "exif:", "png:", "date:", "thumb::", "xml:com.adobe.xmp", "signature")
"""Beginnings of lower-case PNG keywords whose texts repeat EXIF or describe another file. ImageMagick and thumbnailers write
them."""
MAX_TEXT_CHARACTERS = 2_000_000
MAX_JPEG_SEGMENT_BYTES = 65_533
MAX_JPEG_XMP_BYTES = 65_504
INCH = 2
"""The EXIF value of a resolution unit of one inch."""
PHOTOSHOP, IPTC_RESOURCE = b"Photoshop 3.0\0", b"8BIM\x04\x04\0\0"


@dataclass
class Metadata:
    """The metadata of an output."""

    exif: Exif | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    """IPTC-IIM records."""
    text: dict[str, str] = field(default_factory=dict)
    """PNG texts by keyword. The comment of another format has the keyword "Comment"."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, (horizontal, vertical), of the upright image."""


def select_metadata(stored: StoredImage, policy: Literal["keep", "strip", "strip_gps"], is_converted: bool) -> Metadata:
    """Select the metadata for the upright output of an image. Broken metadata is dropped.

    Args:
        stored: the source image.
        policy: strip_gps drops everything that may name a place: GPS tags, XMP, IPTC and texts.
        is_converted: whether the colours were converted to sRGB.
    """
    if policy == "strip":
        return Metadata()
    is_rotated, is_on_its_side = stored.orientation != 1, stored.orientation >= 5
    exif = correct_exif(stored.exif, policy == "keep", is_converted, is_on_its_side)
    dpi = stored.dpi[::-1] if stored.dpi and is_on_its_side else stored.dpi
    dpi = check_dpi(dpi) or check_dpi(exif.read_dpi() if exif else None)
    if policy == "strip_gps":
        return Metadata(exif=exif, dpi=dpi)
    return Metadata(
        exif=exif,
        xmp=correct_xmp(stored.xmp, is_rotated, is_converted),
        iptc=stored.iptc or (exif.iptc if exif else None),
        text=select_texts(stored.text),
        dpi=dpi,
    )


def check_dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return a resolution if every format can store it, else None."""
    return dpi if dpi and all(1 <= value <= 65_535 for value in dpi) else None


def select_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """Select the texts that are true of a copy, up to MAX_TEXT_CHARACTERS in total."""
    remaining, selected = MAX_TEXT_CHARACTERS, {}
    for keyword, text in texts.items():
        remaining -= len(text)
        if remaining >= 0 and not keyword.lower().startswith(DROPPED_TEXTS):
            selected[keyword] = text
    return selected


def build_save_options(image_format: str, metadata: Metadata, is_resized: bool) -> dict[str, Any]:
    """Express metadata as arguments of Pillow's writer; what the format cannot store is dropped.

    TIFF gets EXIF, XMP and IPTC from `add_tiff_metadata` instead.

    Args:
        image_format: of the output.
        metadata: of the output.
        is_resized: whether the output differs in size from the source, so that pixel positions are no longer valid.
    """
    options: dict[str, Any] = {}
    exif, xmp, dpi = metadata.exif, metadata.xmp, metadata.dpi
    if xmp and is_resized:
        xmp = remove_regions(xmp)
    if dpi and image_format in ("JPEG", "PNG", "BMP", "TIFF"):
        options["dpi"] = dpi
    if image_format == "PNG" and (metadata.text or xmp):
        options["pnginfo"] = build_png_texts(metadata.text, xmp)
    if image_format not in ("JPEG", "PNG", "WEBP", "AVIF"):
        return options
    if dpi and image_format in ("WEBP", "AVIF"):
        exif = add_dpi(exif, dpi)
    if exif and image_format == "AVIF":
        # AVIF stores the orientation in a property, and Pillow rewrites EXIF that contains another orientation.
        exif = Exif({tag: entry for tag, entry in exif.main.items() if tag != Base.Orientation}, exif.sub_directories)
    if exif and not (image_format == "JPEG" and len(exif.to_bytes()) > MAX_JPEG_SEGMENT_BYTES):
        options["exif"] = exif.to_bytes()
    if xmp and image_format != "PNG" and not (image_format == "JPEG" and len(xmp) > MAX_JPEG_XMP_BYTES):
        options["xmp"] = xmp
    if image_format == "JPEG":
        comment = metadata.text.get(COMMENT, "").encode("utf-8")
        if 0 < len(comment) <= MAX_JPEG_SEGMENT_BYTES:
            options["comment"] = comment
        if metadata.iptc and len(segment := build_photoshop_segment(metadata.iptc)) <= MAX_JPEG_SEGMENT_BYTES + 4:
            options["extra"] = segment
    return options


def build_png_texts(texts: Mapping[str, str], xmp: bytes | None) -> PngInfo:
    """Build the text chunks of a PNG."""
    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_text(keyword, text, zip=len(text) > 1000)
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    return chunks


def build_photoshop_segment(iptc: bytes) -> bytes:
    """Build the APP13 segment of a JPEG that holds IPTC."""
    body = PHOTOSHOP + IPTC_RESOURCE + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", min(len(body) + 2, 0xFFFF)) + body


def add_dpi(exif: Exif | None, dpi: tuple[float, float]) -> Exif:
    """Add the resolution to EXIF that has none, for formats that cannot store it elsewhere."""
    exif = exif or Exif({int(Base.Orientation): (SHORT, 1, b"\1\0")}, {})
    if exif.read_dpi():
        return exif
    resolution = {
        int(tag): (RATIONAL, 1, struct.pack("<II", round(value * 1000), 1000))
        for tag, value in zip((Base.XResolution, Base.YResolution), dpi, strict=True)
    }
    resolution[int(Base.ResolutionUnit)] = (SHORT, 1, struct.pack("<H", INCH))
    return replace(exif, main=exif.main | resolution)


def add_tiff_metadata(data: bytes, metadata: Metadata, is_resized: bool) -> bytes:
    """Add EXIF, XMP and IPTC to a TIFF that Pillow wrote.

    Pillow itself writes none of them into compressed TIFFs.
    """
    xmp = remove_regions(metadata.xmp) if metadata.xmp and is_resized else metadata.xmp
    exif = metadata.exif or Exif({}, {})
    if metadata.iptc:
        exif = replace(exif, main=exif.main | {IPTC: (UNDEFINED, len(metadata.iptc), metadata.iptc)})
    return add_to_tiff(data, exif, xmp) if exif.main or exif.sub_directories or xmp else data
