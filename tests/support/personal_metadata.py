"""Files of every format that carry everything a person may be recognised by: one mark in each kind of metadata."""

import struct

import pylibjxl
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo

from tests.support.camera_raw import dng_file
from tests.support.exact_writers import bmp_file, box, with_jp2_boxes
from tests.support.heifs import Picture, heif_file, picture, quadrants
from tests.support.icc import DISPLAY_P3, rgb_profile
from tests.support.image_files import encode_as

PHOTO = quadrants(64, 96)
PROFILE = rgb_profile(DISPLAY_P3)
DPI = (300, 300)
MARKS = {
    "EXIF": "Ann of EXIF",
    "XMP": "Ann of XMP",
    "IPTC": "Ann of IPTC",
    "comment": "Ann of comment",
    "PNG text": "Ann of text",
}
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Artist="{MARKS["XMP"]}"/></rdf:RDF></x:xmpmeta>'
).encode()
IPTC = b"\x1c\x02\x74" + struct.pack(">H", len(MARKS["IPTC"])) + MARKS["IPTC"].encode()
IPTC_TAG, XMP_TAG = 33723, 700


def build_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Artist], exif[Base.Orientation] = MARKS["EXIF"], 1
    exif[IFD.Exif] = {Base.UserComment: b"ASCII\0\0\0" + MARKS["EXIF"].encode()}
    exif[IFD.GPSInfo] = {GPS.GPSAreaInformation: MARKS["EXIF"].encode(), GPS.GPSLatitude: (48.0, 12.0, 30.5)}
    return exif


def build_jpeg() -> bytes:
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
    segment = b"Photoshop 3.0\0" + resource
    jpeg = encode_as(
        PHOTO,
        "JPEG",
        exif=build_exif(),
        xmp=XMP,
        comment=MARKS["comment"].encode(),
        dpi=DPI,
        icc_profile=PROFILE,
        quality=95,
    )
    return jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def build_png() -> bytes:
    texts = PngInfo()
    texts.add_text("Comment", MARKS["comment"])
    texts.add_text("parameters", MARKS["PNG text"], zip=True)
    texts.add_itxt("Author", MARKS["PNG text"])
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return encode_as(PHOTO, "PNG", pnginfo=texts, exif=build_exif(), dpi=DPI, icc_profile=PROFILE)


def build_tiff() -> bytes:
    exif = Image.Exif()
    exif.load(build_exif().tobytes())
    exif[IPTC_TAG], exif[XMP_TAG] = IPTC, XMP
    return encode_as(PHOTO, "TIFF", exif=exif, dpi=DPI, icc_profile=PROFILE)


def build_bmp() -> bytes:
    """Return a BMP of version 5 with a profile."""
    height, width = PHOTO.shape[:2]
    rows = [row[:, ::-1].tobytes() for row in PHOTO]
    tail = b"DEBM" + bytes(48) + struct.pack("<4I", 4, 124 + 3 * height * width, len(PROFILE), 0)
    bmp = bmp_file(rows, (width, height), 24, header=124, tail=tail, more=PROFILE)
    pixels_per_metre = round(DPI[0] / 0.0254)
    return bmp[:38] + struct.pack("<II", pixels_per_metre, pixels_per_metre) + bmp[46:]


def build_heic() -> bytes:
    exif = build_exif().tobytes()
    whole = picture("colour", box(b"colr", b"prof" + PROFILE))
    return heif_file(whole, Picture(XMP, kind=b"mime", describes=1), exif=exif)


def build_jpegxl() -> bytes:
    return pylibjxl.encode(PHOTO, lossless=True, exif=build_exif().tobytes()[6:], xmp=XMP, icc=PROFILE)


def build_jpeg2000() -> bytes:
    jp2 = encode_as(PHOTO, "JPEG2000", comment=MARKS["comment"])
    return with_jp2_boxes(jp2, {b"colr": b"\2\0\0" + PROFILE})


FILES = {
    "JPEG": build_jpeg(),
    "PNG": build_png(),
    "WebP": encode_as(PHOTO, "WEBP", exif=build_exif(), xmp=XMP, icc_profile=PROFILE),
    "AVIF": encode_as(PHOTO, "AVIF", exif=build_exif(), xmp=XMP, icc_profile=PROFILE),
    "TIFF": build_tiff(),
    "BMP": build_bmp(),
    "GIF": encode_as(Image.fromarray(PHOTO).quantize(16), "GIF", comment=MARKS["comment"].encode()),
    "PPM": encode_as(PHOTO, "PPM"),
    "JPEG 2000": build_jpeg2000(),
    "HEIC": build_heic(),
    "JPEG XL": build_jpegxl(),
    "camera raw": dng_file(PHOTO / 255, artist=MARKS["EXIF"]),
}
"""By the name of the format in the documentation. The content of each file is PHOTO."""
