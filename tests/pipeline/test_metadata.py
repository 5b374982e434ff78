"""EXIF and XMP: kept, stripped, broken."""

import struct
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from tests.support.camera import MAKER, METADATA_FORMATS, OWNER, PLACE, SUBJECT_AREA, XMP, camera_exif, with_metadata
from tests.support.icc import ADOBE_RGB, rgb_profile
from tests.support.image_files import H, W, encode, encode_as, open_image, reencode


@pytest.mark.parametrize("source", METADATA_FORMATS)
@pytest.mark.parametrize("image_format", METADATA_FORMATS)
def test_metadata_is_kept_and_corrected(photo, source, image_format):
    data = with_metadata(photo, source)
    image = reencode(data, image_format)
    assert image.size == (H, W)
    exif, details = image.getexif(), image.getexif().get_ifd(IFD.Exif)
    assert exif.get(Base.Orientation, 1) == 1
    assert (exif[Base.Make], exif[Base.XResolution]) == ("Maker", 300)
    # Pillow reads bytes of text as Latin-1, and wrote only ASCII into the sources of these two formats.
    owner = b"?? M??ller" if source in ("TIFF", "AVIF") else OWNER
    assert exif[Base.Copyright].encode("latin-1") == owner
    assert (details[Base.DateTimeOriginal], details[Base.MakerNote]) == ("2024:05:06 07:08:09", MAKER)
    assert details[Base.ExposureTime] == pytest.approx(1 / 250)
    # Positions and sizes in pixels are those of the image before its rotation.
    stale_tags = {Base.ExifImageWidth, Base.SubjectLocation, SUBJECT_AREA, Base.FocalPlaneXResolution}
    assert not stale_tags & details.keys()
    assert details[Base.ColorSpace] == 0xFFFF
    assert exif.get_ifd(IFD.GPSInfo)[GPS.GPSLatitude] == (48, 12, 30.5)
    assert b'tiff:Orientation="6"' not in image.info["xmp"]
    assert "é".encode() in image.info["xmp"]
    description = ElementTree.fromstring(image.info["xmp"]).find(".//{*}Description")
    names = {name.rpartition("}")[2] for name in (*description.attrib, *(inner.tag for inner in description))}
    assert names - {"Orientation"} == {"Artist", "FNumber"}
    # A viewer that applies the orientation of EXIF or XMP must not rotate the output again.
    assert decode_image(encode(np.asarray(image), decode_image(data), image_format)).rgb.shape == (W, H, 3)
    thumbnail = encode_as(Image.new("RGB", (16, 12), (255, 0, 0)), "JPEG")
    if source == "JPEG":
        assert thumbnail in data
    assert thumbnail not in encode(decode_image(data).rgb, decode_image(data), image_format)


@pytest.mark.parametrize("image_format", METADATA_FORMATS)
def test_strip_gps_removes_every_place(photo, image_format):
    data = with_metadata(photo, image_format)
    decoded = decode_image(data, config=ImageConfig(metadata="strip_gps"))
    out = encode(decoded.rgb, decoded, image_format)
    image = open_image(out)
    assert image.getexif()[Base.Make] == "Maker"
    assert image.getexif().get_ifd(IFD.Exif)[Base.MakerNote] == MAKER
    assert IFD.GPSInfo not in image.getexif()
    assert "xmp" not in image.info
    assert PLACE.encode() not in out


@pytest.mark.parametrize("image_format", METADATA_FORMATS)
def test_strip_removes_all_metadata(photo, image_format):
    decoded = decode_image(with_metadata(photo, image_format), config=ImageConfig(metadata="strip"))
    image = open_image(encode(decoded.rgb, decoded, image_format))
    assert "xmp" not in image.info
    assert "exif" not in image.info
    assert not image.getexif().keys() & {Base.Make, Base.Copyright, Base.Orientation, IFD.Exif, IFD.GPSInfo}


def test_exif_colour_space_is_srgb_after_conversion(photo):
    data = encode_as(photo, "JPEG", exif=camera_exif(1), icc_profile=rgb_profile(ADOBE_RGB))
    assert reencode(data).getexif().get_ifd(IFD.Exif)[Base.ColorSpace] == 1


def test_exif_in_tiff_of_every_layout_is_read(photo):
    exif = Image.Exif()
    exif.load(camera_exif(1))
    exif[34377] = b"8BIM" + bytes(3_000_000)  # The layers of Photoshop.
    assert reencode(encode_as(photo, "TIFF", exif=exif), "JPEG").getexif().get_ifd(IFD.Exif)[Base.MakerNote] == MAKER


def test_metadata_too_large_for_jpeg_is_dropped(photo):
    exif = Image.Exif()
    exif[Base.Make], exif[Base.ImageDescription] = "Maker", "x" * 70_000
    data = encode_as(photo, "TIFF", exif=exif)
    assert reencode(data, "WEBP").getexif()[Base.Make] == "Maker"
    assert Base.Make not in reencode(data, "JPEG").getexif()
    long = XMP.replace(b'tiff:Artist="', b'tiff:Artist="' + b" " * 70_000)
    assert "xmp" in reencode(encode_as(photo, "WEBP", xmp=long)).info
    assert "xmp" not in reencode(encode_as(photo, "WEBP", xmp=long), "JPEG").info


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=10),
    st.integers(0, 1500),
    st.binary(max_size=60),
    st.sampled_from(METADATA_FORMATS),
    st.sampled_from(["keep", "strip_gps"]),
)
@settings(max_examples=200)
def test_metadata_that_is_broken_is_dropped(image_format, changes, end, xmp, target, metadata):
    exif = bytearray(camera_exif()[: 12 + end])
    for offset, value in changes:
        exif[6 + offset % (len(exif) - 6)] = value
    data = encode_as(Image.new("RGB", (8, 8), (9, 99, 199)), image_format, exif=bytes(exif), xmp=xmp)
    decoded = decode_image(data, config=ImageConfig(metadata=metadata))
    assert open_image(encode(decoded.rgb, decoded, target)).size == decoded.rgb.shape[1::-1]


def test_exif_with_overlapping_values_is_bounded(photo):
    main = struct.pack("<HHHIII", 1, IFD.Exif, 4, 1, 26, 0)
    entries = b"".join(struct.pack("<HHII", tag, 7, 300_000, 0) for tag in range(5000))
    block = b"II*\0\x08\0\0\0" + main + struct.pack("<H", 5000) + entries + bytes(300_000)
    decoded = decode_image(encode_as(photo, "PNG", exif=b"Exif\0\0" + block))
    assert decoded.metadata.exif is None
    np.testing.assert_array_equal(decoded.rgb, photo)
