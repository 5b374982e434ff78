"""EXIF metadata like that of a phone's camera."""

import struct

import numpy as np
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo

from tests.support.image_files import encode_as

SUBJECT_AREA = 0x9214
METADATA_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
OWNER = "© Müller".encode()
MAKER, PLACE = b"any note of the camera " * 20, "a place that nobody is to know"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
    b' tiff:Orientation="6" tiff:ImageWidth="200" exif:PixelXDimension="200" tiff:Artist="\xc3\xa9 %s">'
    b"<exif:PixelYDimension>300</exif:PixelYDimension><exif:SubjectArea> <rdf:Seq><rdf:li>100</rdf:li>"
    b" <rdf:li>150</rdf:li></rdf:Seq> </exif:SubjectArea><exif:FNumber>28/10</exif:FNumber></rdf:Description>"
    b"</rdf:RDF></x:xmpmeta>"
) % PLACE.encode()


def camera_exif(orientation: int = 6) -> bytes:
    """Return EXIF like that of a phone: with GPS position, maker note, rationals of 0/0, and a thumbnail."""
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Copyright], exif[Base.Orientation] = "Maker", OWNER, orientation
    exif[Base.XResolution], exif[Base.ResolutionUnit] = 300.0, 2
    exif[IFD.Exif] = {
        Base.DateTimeOriginal: "2024:05:06 07:08:09",
        Base.MakerNote: MAKER,
        Base.ExposureTime: 1 / 250,
        Base.LensSpecification: (26.0, 26.0, float("nan"), float("nan")),
        Base.ColorSpace: 0xFFFF,
        Base.ExifImageWidth: 200,
        Base.ExifImageHeight: 300,
        SUBJECT_AREA: (100, 150, 40, 30),
        Base.SubjectLocation: (100, 150),
        Base.FocalPlaneXResolution: 4000.0,
        Base.FocalPlaneYResolution: 4000.0,
        Base.FocalPlaneResolutionUnit: 2,
    }
    exif[IFD.GPSInfo] = {
        GPS.GPSLatitudeRef: "N",
        GPS.GPSLatitude: (48.0, 12.0, 30.5),
        GPS.GPSAreaInformation: PLACE.encode(),
    }
    content = bytearray(exif.tobytes())
    # Pillow writes no thumbnail, so link a second directory at the end to the main one.
    order, base = (">", 6) if content[6:8] == b"MM" else ("<", 6)
    (count,) = struct.unpack_from(order + "H", content, base + 8)
    struct.pack_into(order + "I", content, base + 10 + 12 * count, len(content) - base)
    thumbnail = encode_as(Image.new("RGB", (16, 12), (255, 0, 0)), "JPEG")
    start = len(content) - base + 2 + 24 + 4
    content += struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0201, 4, 1, start)
    content += struct.pack(order + "HHII", 0x0202, 4, 1, len(thumbnail)) + b"\0" * 4 + thumbnail
    return bytes(content)


def with_metadata(image: np.ndarray, image_format: str) -> bytes:
    exif, png = Image.Exif(), PngInfo()
    exif.load(camera_exif())
    if image_format == "TIFF":
        exif[Base.XMLPacket] = XMP
        return encode_as(image, "TIFF", exif=exif)
    png.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return encode_as(image, image_format, exif=camera_exif(), xmp=XMP, pnginfo=png)
