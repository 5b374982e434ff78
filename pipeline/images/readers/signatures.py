"""Recognize a file format by the first bytes of a file."""

import re

from imagemill.pipeline.images.errors import ImageError

HEAD_BYTES = 512
"""Of a file, what its format is told by."""

AVIF_BRANDS = (b"avif", b"avis")

SIGNATURES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "AVIF": (4, (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1")),
    "BMP": (0, (b"BM",)),
    "GIF": (0, (b"GIF87a", b"GIF89a")),
    "JPEG": (0, (b"\xff\xd8\xff",)),
    "JPEG2000": (0, (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \x0d\x0a\x87\x0a")),
    "PNG": (0, (b"\x89PNG\r\n\x1a\n",)),
    "PPM": (0, tuple(b"P%c" % kind for kind in b"1234567fF")),
    "TIFF": (0, (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")),
    "WEBP": (8, (b"WEBP",)),
}
"""What stands in a file of each format from a byte on."""

HEIF_CONTAINERS = (b"ftypmif1", b"ftypmsf1")
"""Files with pictures of any codec; which one, their other brands say."""

FORMATS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "AVI video": (8, (b"AVI ",)),
    "Canon raw (CR2)": (0, (b"II*\0\x10\0\0\0CR", b"MM\0*\0\0\0\x10CR")),
    "Canon raw (CR3)": (4, (b"ftypcrx ",)),
    "Canon raw (CRW)": (6, (b"HEAPCCDR",)),
    "DDS": (0, (b"DDS ",)),
    "DICOM": (128, (b"DICM",)),
    "DjVu": (0, (b"AT&TFORM",)),
    "DPX": (0, (b"SDPX", b"XPDS")),
    "EMF": (40, (b" EMF",)),
    "FITS": (0, (b"SIMPLE  =",)),
    "FLIF": (0, (b"FLIF",)),
    "Fujifilm raw (RAF)": (0, (b"FUJIFILMCCD-RAW",)),
    "GIMP (XCF)": (0, (b"gimp xcf",)),
    "HEIC": (
        4,
        tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs")),
    ),
    "HEIF with AVC": (4, (b"ftypavci", b"ftypavcs")),
    "ICNS": (0, (b"icns",)),
    "JBIG2": (0, (b"\x97JB2\r\n\x1a\n",)),
    "JNG": (0, (b"\x8bJNG\r\n\x1a\n",)),
    "JPEG XL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    "JPEG XR": (0, (b"II\xbc\x01", b"II\xbc\0")),
    "Matroska video": (0, (b"\x1aE\xdf\xa3",)),
    "Minolta raw (MRW)": (0, (b"\0MRM",)),
    "MNG": (0, (b"\x8aMNG\r\n\x1a\n",)),
    "MP4 or MOV video": (
        4,
        (
            *(
                b"ftyp" + brand
                for brand in (b"qt  ", b"mp4", b"isom", b"iso", b"M4", b"3g", b"avc1", b"dash", b"mmp4", b"MSNV")
            ),
            *(b"moov", b"mdat\0", b"wide", b"free\0\0"),
        ),
    ),
    "Olympus raw (ORF)": (0, (b"IIRO", b"IIRS", b"MMOR")),
    "OpenEXR": (0, (b"\x76\x2f\x31\x01",)),
    "Panasonic raw (RW2)": (0, (b"IIU\0",)),
    "PDF": (0, (b"%PDF-",)),
    "PostScript (EPS)": (0, (b"%!PS", b"\xc5\xd0\xd3\xc6")),
    "Photoshop (PSD)": (0, (b"8BPS",)),
    "QOI": (0, (b"qoif",)),
    "Radiance HDR": (0, (b"#?RADIANCE", b"#?RGBE")),
    "SGI": (0, (b"\x01\xda\0\1", b"\x01\xda\1\1", b"\x01\xda\0\2", b"\x01\xda\1\2")),
    "Sigma raw (X3F)": (0, (b"FOVb",)),
    "Sun raster": (0, (b"\x59\xa6\x6a\x95",)),
    "WMF": (0, (b"\xd7\xcd\xc6\x9a",)),
}
"""A name, and what stands in such files from a byte on."""

NOT_PICTURES: dict[str, tuple[bytes, ...]] = {
    "an AppleDouble file of macOS (a resource fork); the picture has the same name without ._": (b"\0\x05\x16\x07",),
    "a Git LFS pointer; fetch the picture with `git lfs pull`": (b"version https://git-lfs",),
    "a ZIP archive; unpack it": (b"PK\3\4", b"PK\5\6"),
    "a RAR archive; unpack it": (b"Rar!\x1a\x07",),
    "a 7z archive; unpack it": (b"7z\xbc\xaf\x27\x1c",),
    "a gzip archive; unpack it": (b"\x1f\x8b\x08",),
}
"""What a file is, by its first bytes."""

HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)

SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<(?:\?|!).*)?<svg\b", re.IGNORECASE | re.DOTALL)

XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml\b", re.IGNORECASE)

ICON = re.compile(rb"\0\0([\1\2])\0[^\0]\0..[^\xff]\0", re.DOTALL)
"""An icon or a cursor, with at least one picture in it; TGA begins with the same four bytes."""


def identify_format(head: bytes) -> str | None:
    """The name in READERS of a file's format, by its first HEAD_BYTES bytes."""
    for name, (place, marks) in SIGNATURES.items():
        if not head.startswith(marks, place) or head.startswith(FORMATS["Canon raw (CR2)"][1]):
            continue
        brands = head[8 : max(16, int.from_bytes(head[:4], "big"))]
        if name == "AVIF" and not any(brand in brands for brand in AVIF_BRANDS):
            continue
        return name
    return None


def unreadable_error(head: bytes) -> ImageError:
    """What is said of a file that no reader takes, or whose reader knows nothing of it, by its first bytes."""
    if name := identify_format(head):
        return ImageError("BrokenImage", f"{name} whose header is damaged or cut")
    unknown = ImageError("UnknownFormat", f"not an image in a known format; begins with {head[:16]!r}")
    return unsupported(head) or unknown


def unsupported(head: bytes) -> ImageError | None:
    """What a file is that no reader takes, by its first bytes; None if that is not known."""
    for name, (place, marks) in FORMATS.items():
        if head.startswith(marks, place):
            return ImageError("UnsupportedFormat", f"{name} is not supported; convert it")
    if head.startswith(HEIF_CONTAINERS, 4):
        return ImageError("UnsupportedFormat", "HEIC is not supported; convert it")
    for what, marks in NOT_PICTURES.items():
        if head.startswith(marks):
            return ImageError("UnsupportedFormat", f"not a picture but {what}")
    if HTML.match(head):
        return ImageError("UnsupportedFormat", "not a picture but an HTML page; download the picture again")
    if ICON.match(head):
        return ImageError("UnsupportedFormat", f"{'ICO' if head[2] == 1 else 'CUR'} is not supported; convert it")
    if SVG.match(head):
        return ImageError("UnsupportedFormat", "SVG is not supported; convert it")
    if XML.match(head):
        return ImageError("UnsupportedFormat", "not a picture but an XML document; download the picture again")
    return None
