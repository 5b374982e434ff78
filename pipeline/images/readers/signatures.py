"""Identify the format of a file by its first bytes, and name formats that are not supported."""

import re

from imagemill.pipeline.images.errors import ImageError, broken_image, unsupported_format

HEAD_BYTES = 512
"""How many bytes of a file the functions here need."""
BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"),
}
"""By format: the brands of HEIF files that name its codec."""
HEIF_CONTAINERS = (b"ftypmif1", b"ftypmsf1")
"""HEIF files that may hold images of any codec. Their other brands name the codec."""

RAW_SIGNATURES: tuple[tuple[int, tuple[bytes, ...]], ...] = (
    (0, (b"II*\0\x10\0\0\0CR", b"MM\0*\0\0\0\x10CR", b"FUJIFILMCCD-RAW", b"\0MRM", b"FOVb")),
    (0, (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")),
    (4, (b"ftypcrx ",)),
    (6, (b"HEAPCCDR",)),
)
"""Camera raw: CR2, RAF, MRW, X3F; ORF and RW2; CR3; CRW. Other cameras write TIFFs, which `is_camera_raw` recognises."""

SIGNATURES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "AVIF": (4, (b"ftypavif", b"ftypavis", *HEIF_CONTAINERS)),
    "BMP": (0, (b"BM",)),
    "GIF": (0, (b"GIF87a", b"GIF89a")),
    "HEIC": (4, (*(b"ftyp" + brand for brand in BRANDS["HEIC"]), *HEIF_CONTAINERS)),
    "JPEG": (0, (b"\xff\xd8\xff",)),
    "JPEG2000": (0, (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \x0d\x0a\x87\x0a")),
    "JPEGXL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    "PNG": (0, (b"\x89PNG\r\n\x1a\n",)),
    "PPM": (0, tuple(b"P%c" % kind for kind in b"1234567fF")),
    "TIFF": (0, (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")),
    "WEBP": (8, (b"WEBP",)),
}
"""By supported format: an offset, and the bytes of which one is found at this offset."""

UNSUPPORTED_FORMATS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "AVI video": (8, (b"AVI ",)),
    "DDS": (0, (b"DDS ",)),
    "DICOM": (128, (b"DICM",)),
    "DjVu": (0, (b"AT&TFORM",)),
    "DPX": (0, (b"SDPX", b"XPDS")),
    "EMF": (40, (b" EMF",)),
    "FITS": (0, (b"SIMPLE  =",)),
    "FLIF": (0, (b"FLIF",)),
    "GIMP (XCF)": (0, (b"gimp xcf",)),
    "HEIF with AVC": (4, (b"ftypavci", b"ftypavcs")),
    "ICNS": (0, (b"icns",)),
    "JBIG2": (0, (b"\x97JB2\r\n\x1a\n",)),
    "JNG": (0, (b"\x8bJNG\r\n\x1a\n",)),
    "JPEG XR": (0, (b"II\xbc\x01", b"II\xbc\0")),
    "Matroska video": (0, (b"\x1aE\xdf\xa3",)),
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
    "OpenEXR": (0, (b"\x76\x2f\x31\x01",)),
    "PDF": (0, (b"%PDF-",)),
    "PostScript (EPS)": (0, (b"%!PS", b"\xc5\xd0\xd3\xc6")),
    "Photoshop (PSD)": (0, (b"8BPS",)),
    "QOI": (0, (b"qoif",)),
    "Radiance HDR": (0, (b"#?RADIANCE", b"#?RGBE")),
    "SGI": (0, (b"\x01\xda\0\1", b"\x01\xda\1\1", b"\x01\xda\0\2", b"\x01\xda\1\2")),
    "Sun raster": (0, (b"\x59\xa6\x6a\x95",)),
    "WMF": (0, (b"\xd7\xcd\xc6\x9a",)),
}
"""Like SIGNATURES, for formats that people have in image folders and that no reader supports."""

NOT_IMAGES: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "a macOS resource fork (AppleDouble)": ("The image has the same name without ._", (b"\0\x05\x16\x07",)),
    "a Git LFS pointer": ("Fetch the image with `git lfs pull`", (b"version https://git-lfs",)),
    "a ZIP archive": ("Unpack it", (b"PK\3\4", b"PK\5\6")),
    "a RAR archive": ("Unpack it", (b"Rar!\x1a\x07",)),
    "a 7z archive": ("Unpack it", (b"7z\xbc\xaf\x27\x1c",)),
    "a gzip archive": ("Unpack it", (b"\x1f\x8b\x08",)),
}
"""By name: what to do, and the bytes of which one begins the file."""

HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)

SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<(?:\?|!).*)?<svg\b", re.IGNORECASE | re.DOTALL)

XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml\b", re.IGNORECASE)

ICON = re.compile(rb"\0\0([\1\2])\0[^\0]\0..[^\xff]\0", re.DOTALL)
"""An icon or a cursor that holds at least one image. TGA files begin with the same four bytes."""


def identify_format(head: bytes) -> str | None:
    """Return the format of a file, RAW or a key of SIGNATURES, if it is supported; else None.

    Args:
        head: the first HEAD_BYTES bytes of the file.
    """
    if any(head.startswith(signatures, offset) for offset, signatures in RAW_SIGNATURES):
        return "RAW"
    for image_format, (offset, signatures) in SIGNATURES.items():
        if head.startswith(signatures, offset) and has_brand(head, image_format):
            return image_format
    return None


def has_brand(head: bytes, image_format: str) -> bool:
    """Return whether a HEIF file declares the codec of a format among its brands. True for formats without brands."""
    brands = head[8 : max(16, int.from_bytes(head[:4], "big"))]
    return image_format not in BRANDS or any(brand in brands for brand in BRANDS[image_format])


def unreadable_error(head: bytes) -> ImageError:
    """Return the error of a file that no reader supports, or whose header cannot be read.

    Args:
        head: the first HEAD_BYTES bytes of the file.
    """
    if image_format := identify_format(head):
        return broken_image(f"{image_format}: the header is damaged or truncated")
    unknown = f"not an image in a known format: the file begins with {head[:16]!r}. Replace the file."
    return find_unsupported(head) or ImageError("UnknownFormat", unknown)


def find_unsupported(head: bytes) -> ImageError | None:
    """Name the format of a file that no reader supports; None if the format is unknown."""
    for name, (offset, signatures) in UNSUPPORTED_FORMATS.items():
        if head.startswith(signatures, offset):
            return unsupported_format(name)
    if head.startswith(HEIF_CONTAINERS, 4):
        return unsupported_format("HEIF of an unknown codec")
    for name, (advice, signatures) in NOT_IMAGES.items():
        if head.startswith(signatures):
            return not_an_image(name, advice)
    if HTML.match(head):
        return not_an_image("an HTML page", "Download the image again")
    if ICON.match(head):
        return unsupported_format("ICO" if head[2] == 1 else "CUR")
    if SVG.match(head):
        return unsupported_format("SVG")
    if XML.match(head):
        return not_an_image("an XML document", "Download the image again")
    return None


def not_an_image(name: str, advice: str) -> ImageError:
    """Return the error of a file that is no image, such as an archive."""
    return ImageError("UnsupportedFormat", f"not an image but {name}. {advice}.")
