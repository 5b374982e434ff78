"""TIFFs of several pages: thumbnails, masks, pyramids, stacks, raw files, metadata."""

import io
import struct

import numpy as np
import tifffile
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from tests.support.camera import XMP
from tests.support.sample_images import noise, scene
from tests.support.tiffs import BYTE, LONG, SHORT, build_pages, build_tiff, decode_error, encode_tiff

H, W = 24, 36
RGB, GRAY = scene(H, W), scene(H, W)[..., :1]


def test_tiff_camera_raw_is_not_read_as_tiff() -> None:
    """Raw files begin with a small preview, which is not the image that the user expects."""
    raw = encode_tiff(noise(64, 64, 1), 16, 32803)
    small = bytearray(build_pages(encode_tiff(RGB, 8, 2, tags={254: (LONG, (1,)), 330: (LONG, (0,))}), raw))
    first = struct.unpack_from("<I", small, 4)[0]
    count = struct.unpack_from("<H", small, first)[0]
    raw_at = struct.unpack_from("<I", small, first + 2 + 12 * count)[0]
    for at in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from("<H", small, at)[0] == 330:
            struct.pack_into("<I", small, at + 8, raw_at)
    struct.pack_into("<I", small, first + 2 + 12 * count, 0)
    canon = bytearray(encode_tiff(RGB, 8, 2))
    canon[8:12] = b"CR\2\0"
    developed = decode_image(bytes(small))
    assert (developed.format, developed.rgb.shape) == ("RAW", (64, 64, 3))
    assert decode_error(bytes(canon))[0] == "UnsupportedFormat"
    assert decode_error(bytes(canon))[1].startswith("camera raw of this camera or compression is not supported")


def test_tiff_thumbnail_is_not_the_image() -> None:
    thumbnail = encode_tiff(RGB[::4, ::4], 8, 2, tags={254: (LONG, (1,))})
    mask = encode_tiff(GRAY, 8, 4, tags={254: (LONG, (4,))})
    old = encode_tiff(RGB[::4, ::4], 8, 2, tags={255: (SHORT, (2,))})
    empty = build_tiff({254: (LONG, (0,))}, [b""])
    other_page = encode_tiff(RGB[::-1], 8, 2)
    for pages, frames in (
        ((thumbnail, encode_tiff(RGB, 8, 2), other_page), 2),
        ((old, encode_tiff(RGB, 8, 2)), 1),
        ((mask, encode_tiff(RGB, 8, 2), mask, thumbnail), 1),
        ((empty, encode_tiff(RGB, 8, 2)), 2),
        ((encode_tiff(RGB, 8, 2), thumbnail, thumbnail), 1),
        ((encode_tiff(RGB, 8, 2), other_page, other_page, other_page), 4),
    ):
        decoded = decode_image(build_pages(*pages))
        np.testing.assert_array_equal(decoded.rgb, RGB)
        assert (decoded.frames, read_pixel_count(build_pages(*pages))) == (frames, H * W)
    small = decode_image(thumbnail)
    assert (small.rgb.shape, small.frames) == ((6, 9, 3), 1)


def test_tiff_pyramid_levels_are_not_frames() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(RGB, subifds=2, photometric="rgb", metadata=None)
        writer.write(RGB[::2, ::2], subfiletype=1, photometric="rgb", metadata=None)
        writer.write(RGB[::4, ::4], subfiletype=1, photometric="rgb", metadata=None)
        writer.write(RGB[::-1], photometric="rgb", metadata=None)
    decoded = decode_image(out.getvalue())
    np.testing.assert_array_equal(decoded.rgb, RGB)
    assert decoded.frames == 2


def test_tiff_microscope_stack_decodes_first_page() -> None:
    stack = np.stack([GRAY[..., 0].astype(np.uint16) * 257 + n for n in range(5)])
    for options in ({"imagej": True}, {"ome": True}, {}):
        out = io.BytesIO()
        tifffile.imwrite(out, stack, photometric="minisblack", **options)
        decoded = decode_image(out.getvalue())
        np.testing.assert_array_equal(decoded.rgb[..., :1], GRAY)
        assert (decoded.frames, decoded.bit_depth) == (5, 16)


def test_tiff_bigtiff_metadata_is_kept() -> None:
    """Profile, XMP and EXIF of a BigTIFF have larger entries."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {
        305: (2, tuple(b"a program\0")),
        34675: (7, tuple(profile)),
        700: (BYTE, tuple(XMP)),
        33432: (2, tuple(b"an owner\0")),
    }
    for order in "<>":
        decoded = decode_image(encode_tiff(RGB, 8, 2, big=True, order=order, tags=tags), config=ImageConfig(icc="keep"))
        assert decoded.metadata.xmp is not None
        assert "é".encode() in decoded.metadata.xmp
        assert decoded.profile == profile
        assert decoded.metadata.exif is not None
        assert decoded.metadata.exif.main[Base.Copyright][2] == b"an owner\0"


def test_tiff_exif_is_that_of_first_page() -> None:
    exif = Image.Exif()
    exif[Base.Artist] = "someone"
    exif.get_ifd(IFD.Exif)[Base.CameraOwnerName] = "an owner"
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "TIFF", exif=exif, compression="tiff_lzw")
    decoded = decode_image(out.getvalue())
    assert decoded.metadata.exif is not None
    assert Base.Artist in decoded.metadata.exif.main


def test_tiff_cyclic_page_chain_ends() -> None:
    data = bytearray(build_pages(encode_tiff(RGB, 8, 2), encode_tiff(RGB, 8, 2)))
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0])
    for target_offset in (first, second, 0xFFFFFF00, 4):
        at = second + 2 + 12 * struct.unpack_from("<H", data, second)[0]
        struct.pack_into("<I", data, at, target_offset)
        assert decode_image(bytes(data)).frames >= 2
