"""Metadata of images that are rotated, resized, converted or saved in another format."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from tests.support.icc import ADOBE_RGB, rgb_profile
from tests.support.image_files import encode, encode_as, open_image, reencode

PROMPT = "a cat, 4k, Müller\nSteps: 20, Seed: 1"


def build_exif(order: str, comment: bytes) -> bytes:
    """Build EXIF with one UserComment and one GPSProcessingMethod, in a byte order."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    first = 8 + 2 + 2 * 12 + 4
    details = first + 18
    main = struct.pack(f"{order}HHHIIHHIII", 2, IFD.Exif, 4, 1, first, IFD.GPSInfo, 4, 1, details + len(comment), 0)
    sub_ifd = struct.pack(f"{order}HHHIII", 1, Base.UserComment, 7, len(comment), first + 18, 0)
    gps = struct.pack(f"{order}HHHIII", 1, GPS.GPSProcessingMethod, 7, len(comment), details + len(comment) + 18, 0)
    return b"Exif\0\0" + mark + struct.pack(f"{order}I", 8) + main + sub_ifd + comment + gps + comment


def read_texts(image: Image.Image) -> tuple[str, str]:
    """Read UserComment and GPSProcessingMethod in the byte order of the file."""
    order = "utf-16-le" if image.getexif().endian == "<" else "utf-16-be"
    values = (
        image.getexif().get_ifd(IFD.Exif)[Base.UserComment],
        image.getexif().get_ifd(IFD.GPSInfo)[GPS.GPSProcessingMethod],
    )
    for value in values:
        assert value.startswith(b"UNICODE\0")
    comment, method = (value[8:].decode(order) for value in values)
    return comment, method


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_user_comment_gets_byte_order_of_output(photo, order, encoding, image_format):
    """Programs write UTF-16 of either order into files of either order."""
    data = encode_as(photo, "JPEG", exif=build_exif(order, b"UNICODE\0" + PROMPT.encode(encoding)))
    assert read_texts(reencode(data, image_format)) == (PROMPT, PROMPT)


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Z")), min_size=1), st.sampled_from("<>"))
def test_user_comment_in_file_order_is_kept(text, order):
    encoding = "utf-16-le" if order == "<" else "utf-16-be"
    data = encode_as(Image.new("RGB", (8, 8)), "JPEG", exif=build_exif(order, b"UNICODE\0" + text.encode(encoding)))
    assert read_texts(reencode(data)) == (text, text)


@pytest.mark.parametrize("target_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "BMP", "TIFF"])
def test_resolution_is_kept_in_every_format(photo, source, target_format):
    image = reencode(encode_as(photo, source, dpi=(300, 150)), target_format)
    exif = image.getexif()
    dpi = (
        image.info["dpi"]
        if target_format in ("JPEG", "PNG", "BMP", "TIFF")
        else (exif[Base.XResolution], exif[Base.YResolution])
    )
    assert [float(value) for value in dpi] == pytest.approx([300, 150], abs=0.5)


def test_resolution_is_that_of_upright_image(photo):
    exif = Image.Exif()
    exif[Base.Orientation], exif[Base.XResolution], exif[Base.YResolution], exif[Base.ResolutionUnit] = 6, 300.0, 150.0, 2
    image = reencode(encode_as(photo, "JPEG", exif=exif, dpi=(300, 150)))
    assert image.info["dpi"] == (150, 300)
    assert (image.getexif()[Base.XResolution], image.getexif()[Base.YResolution]) == (150, 300)


def encode_png_with_text(photo: np.ndarray, **text: str) -> bytes:
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key.replace("_", " "), value)
    return encode_as(photo, "PNG", pnginfo=info)


def test_png_text_is_kept_in_png(photo):
    text = {"parameters": PROMPT, "workflow": '{"nodes": []}', "prompt": "木 é", "Comment": "by Ann", "long": "x" * 50_000}
    obsolete_texts = {
        "Raw_profile_type_exif": "exif 00",
        "exif:Orientation": "6",
        "Thumb::MTime": "9",
        "date:create": "2020",
    }
    assert reencode(encode_png_with_text(photo, **text, **obsolete_texts)).text == text


def test_comment_is_kept_across_formats(photo):
    jpeg = encode_as(photo, "JPEG", comment="taken by Änn".encode())
    assert reencode(jpeg).info["comment"] == "taken by Änn".encode()
    assert reencode(jpeg, "PNG").text == {"Comment": "taken by Änn"}
    assert reencode(encode_png_with_text(photo, Comment="taken by Änn"), "JPEG").info["comment"] == "taken by Änn".encode()
    assert reencode(encode_as(Image.fromarray(photo).quantize(16), "GIF", comment=b"latin \xe9")).text == {
        "Comment": "latin é"
    }


def encode_jpeg_with_iptc(photo: np.ndarray) -> tuple[bytes, bytes]:
    records = ((120, b"A caption"), (116, b"(c) Agency"), (25, b"keyword"), (90, b"A town"))
    iptc = b"".join(b"\x1c\x02" + bytes([kind]) + struct.pack(">H", len(value)) + value for kind, value in records)
    resources = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 4) + b"thmb"
    resources += b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resources
    jpeg = encode_as(photo, "JPEG")
    return jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(body) + 2) + body + jpeg[2:], iptc


def test_iptc_is_kept_between_jpeg_and_tiff(photo):
    data, iptc = encode_jpeg_with_iptc(photo)
    assert reencode(data).info["photoshop"] == {0x0404: iptc}
    tiff = encode(photo, decode_image(data), "TIFF")
    assert open_image(tiff).tag_v2[33723] == iptc
    assert reencode(tiff, "JPEG").info["photoshop"] == {0x0404: iptc}


@pytest.mark.parametrize("metadata", ["strip", "strip_gps"])
def test_strip_gps_drops_iptc_and_texts(photo, metadata):
    config = ImageConfig(metadata=metadata)
    assert b"A town" not in encode(photo, decode_image(encode_jpeg_with_iptc(photo)[0], config=config), "JPEG")
    assert not getattr(reencode(encode_png_with_text(photo, Comment="A town"), config=config), "text", {})
    assert b"A town" not in encode(photo, decode_image(encode_as(photo, "JPEG", comment=b"A town"), config=config), "JPEG")
    dpi = reencode(encode_as(photo, "JPEG", dpi=(300, 300)), config=config).info.get("dpi")
    assert dpi == ((300, 300) if metadata == "strip_gps" else None)


RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
FACES = (
    '<mwg-rs:Regions xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/" rdf:parseType="Resource">'
    '<mwg-rs:AppliedToDimensions xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#" stDim:w="120" stDim:h="80"/>'
    "</mwg-rs:Regions>"
)
XMP = (
    f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}>'
    '<rdf:Description rdf:about="" xmlns:g="http://ns.adobe.com/hdr-gain-map/1.0/" g:Version="1.0"'
    ' xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="4711"'
    ' xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:FullPanoWidthPixels="120"'
    ' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="AB12"'
    ' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:ICCProfile="Adobe RGB (1998)" photoshop:City="Wien"'
    ' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg">'
    '<Container:Directory xmlns:Container="http://ns.google.com/photos/1.0/container/"><rdf:Seq/></Container:Directory>'
    f"<dc:title><rdf:Alt><rdf:li>Ä title &amp; more</rdf:li></rdf:Alt></dc:title>{FACES}"
    "</rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end='w'?>"
).encode()
DROPPED_XMP = ("hdr-gain-map", "MotionPhoto", "MicroVideo", "HasExtendedXMP", "Container", "dc:format")
PLACES = ("FullPanoWidthPixels", "mwg-rs:Regions", "AppliedToDimensions")
PRESERVED_XMP = ("Ä title &amp; more", 'photoshop:City="Wien"', "W5M0MpCehiHzreSzNTczkc9d")


def build_xmp(data: bytes, rgb: np.ndarray | None = None) -> str:
    decoded = decode_image(data)
    return open_image(encode(decoded.rgb if rgb is None else rgb, decoded, "JPEG")).info["xmp"].decode()


def contains_property(xmp: str, *names: str) -> list[bool]:
    return [name in xmp for name in names]


def test_xmp_of_other_file_content_is_dropped(photo):
    xmp = build_xmp(encode_as(photo, "JPEG", xmp=XMP))
    assert not any(contains_property(xmp, *DROPPED_XMP))
    assert all(contains_property(xmp, *PLACES, *PRESERVED_XMP, "ICCProfile"))


def test_xmp_regions_are_dropped_if_image_changes(photo):
    exif = Image.Exif()
    exif[Base.Orientation] = 3
    for xmp in (
        build_xmp(encode_as(photo, "JPEG", xmp=XMP, exif=exif)),
        build_xmp(encode_as(photo, "JPEG", xmp=XMP), photo.repeat(2, 0).repeat(2, 1)),
    ):
        assert not any(contains_property(xmp, *DROPPED_XMP, *PLACES))
        assert all(contains_property(xmp, *PRESERVED_XMP))


def test_xmp_profile_is_dropped_after_conversion(photo):
    assert "ICCProfile" not in build_xmp(encode_as(photo, "JPEG", xmp=XMP, icc_profile=rgb_profile(ADOBE_RGB)))


@pytest.mark.parametrize(
    "xmp",
    [
        b"<x",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
        b"\xff\xfe\0",
        b"<a>" * 3000,
        b"<a b='%s'/>" % (b" " * 3_000_000),
    ],
    ids=["cut", "entities", "no text", "deep", "long"],
)
def test_xmp_that_is_invalid_is_dropped(photo, xmp):
    image = reencode(encode_as(photo, "WEBP", xmp=xmp))
    assert image.info.get("xmp") is None


def test_jpeg_drops_iptc_and_comment_over_64_kb(photo):
    """A PNG can store a comment of any length, a JPEG at most 64 kB."""
    image = reencode(encode_png_with_text(photo, Comment="x" * 70_000), "JPEG")
    assert "comment" not in image.info
