"""TIFFs as programs and cameras leave them: odd tags, pages and samples, and files that are damaged."""

import io
import re
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import DecodedImage, decode_image, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers import tiff_page
from imagemill.pipeline.images.readers.jpeg_structure import parse_structure
from tests.support.camera import XMP
from tests.support.sample_images import noise, picture_or_reason, scene
from tests.support.tiffs import BYTE, LONG, SHORT, tiff, with_segments

H, W = 24, 36
RGB, GRAY = scene(H, W), scene(H, W)[..., :1]


def reject(data: bytes) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    return caught.value.error_class, str(caught.value)


def tiffs(*pages: bytes, order: str = "<") -> bytes:
    """Pages of `tiff` in one file, each behind the one before: offsets are moved."""
    whole = bytearray(pages[0][:4] + bytes(4))
    link = 4
    for page in pages:
        base = len(whole) - 8
        (start,) = struct.unpack_from("<I", page, 4)
        body = bytearray(page)
        (count,) = struct.unpack_from("<H", body, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from("<HHI", body, at)
            size = {1: 1, 3: 2, 4: 4, 5: 8}[kind] * values
            (place,) = struct.unpack_from("<I", body, at + 8)
            if tag in (273, 324):
                spots = [place + 4 * n for n in range(values)] if size > 4 else [at + 8]
                for spot in spots:
                    struct.pack_into("<I", body, spot, struct.unpack_from("<I", body, spot)[0] + base)
            if size > 4:
                struct.pack_into("<I", body, at + 8, place + base)
        struct.pack_into("<I", whole, link, start + base)
        link = base + start + 2 + 12 * count
        whole += body[8:]
    return bytes(whole)


def written(samples: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, metadata=None, **options)
    return out.getvalue()


@pytest.mark.parametrize("bits", [8, 16])
def test_planes_are_what_they_are_side_by_side(bits: int) -> None:
    """Planes of 16 bits were 67 of 255 off."""
    deep = RGB.astype(np.uint16) * 257 if bits == 16 else RGB
    for options in ({}, {"compression": "zstd"}, {"compression": "lzw", "predictor": True}):
        planes = written(np.moveaxis(deep, -1, 0), photometric="rgb", planarconfig="separate", **options)
        np.testing.assert_array_equal(decode_image(planes).rgb, RGB)


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_a_palette_of_8_bits_is_not_black(scale: int) -> None:
    """The numbers of a palette have 16 bits, and some programs write 8, or leave the lower half empty."""
    colours = noise(3, 256).astype(int)
    indices = noise(H, W, 1)
    shown = colours.T[indices[..., 0]]
    for kind in (SHORT, BYTE) if scale == 1 else (SHORT,):
        data = tiff(indices, 8, 3, tags={320: (kind, tuple((colours * scale).ravel().tolist()))})
        picture = decode_image(data)
        np.testing.assert_array_equal(picture.rgb, shown)
        assert (picture.is_gray, picture.bit_depth) == (False, 8)
    assert reject(tiff(indices, 8, 3, tags={320: (SHORT, (1, 2, 3))}))[0] == "BrokenImage"


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_premultiplied_colours_are_divided_by_alpha(bits: int, count: int) -> None:
    most = (1 << bits) - 1
    alpha = np.random.default_rng(1).integers(0, most + 1, (H, W, 1))
    stored = np.random.default_rng(2).integers(0, most + 1, (H, W, count)) * alpha // most
    picture = decode_image(tiff(np.dstack([stored, alpha]), bits, {1: 1, 3: 2, 4: 5}[count], extra=(1,)))
    seen = alpha[..., 0] > 0
    shown = np.divide(stored * 255.0, alpha, out=np.zeros(stored.shape), where=alpha > 0)
    if count == 4:
        inks = np.rint(shown).astype(np.uint8)
        shown = np.asarray(Image.frombytes("CMYK", (W, H), inks.tobytes()).convert("RGB"))
    # Samples are rounded to their own depth before they become 8 bits, and inks are multiplied by black after that.
    assert np.abs(picture.rgb.astype(float) - shown)[seen].max() <= (0.51 + 127.6 / most) * (3 if count == 4 else 1)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, np.rint(alpha[..., 0] * 255 / most))
    assert picture.is_gray == (count == 1)


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_with_transparency_keeps_both(bits: int) -> None:
    inks, alpha = noise(H, W, 4), noise(H, W)
    data = tiff(np.dstack([inks, alpha]).astype(int) * (257 if bits == 16 else 1), bits, 5, extra=(2,))
    shown = np.asarray(Image.frombytes("CMYK", (W, H), inks.tobytes()).convert("RGB"))
    picture = decode_image(data)
    np.testing.assert_array_equal(picture.rgb[alpha > 0], shown[alpha > 0])
    np.testing.assert_array_equal(picture.alpha, alpha)
    share = alpha[..., None] / 255
    onto = decode_image(data, config=ImageConfig(alpha="#ff0000"))
    assert np.abs(onto.rgb - (shown * share + np.array([255, 0, 0]) * (1 - share))).max() <= 1


@pytest.mark.parametrize("extra", [None, (0,), (1,), (2,), (0, 2), (2, 0, 0)])
def test_an_extra_sample_is_what_the_file_says(extra: tuple[int, ...] | None) -> None:
    """Unspecified samples are no transparency; a fourth that nothing is said of is."""
    count = len(extra or (2,))
    samples = np.dstack([RGB, np.full((H, W, count), 255, np.uint8)])
    samples[..., 3 + (extra or (2,)).index(2) if 2 in (extra or (2,)) else 3] = 255
    picture = decode_image(tiff(samples, 8, 2, extra=extra))
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.has_alpha == (extra != (0,))


@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (1, 2)])
@pytest.mark.parametrize("rows", [4, 24])
def test_ycbcr_without_jpeg_is_read(across: int, down: int, rows: int) -> None:
    """Its units hold the lumas of several pixels and one pair of chromas."""
    colours = np.random.default_rng(0).integers(60, 190, (24 // down, -(-30 // across), 2)).astype(np.uint8)
    luma = np.random.default_rng(1).integers(100, 150, (24, colours.shape[1] * across)).astype(np.uint8)
    units = luma.reshape(len(colours), down, colours.shape[1], across).swapaxes(1, 2)
    units = np.concatenate([units.reshape(*colours.shape[:2], -1), colours], -1)
    step = max(rows // down, 1)
    strips = [units[top : top + step].tobytes() for top in range(0, len(units), step)]
    entries = {256: (LONG, (30,)), 257: (LONG, (24,)), 258: (SHORT, (8, 8, 8)), 262: (SHORT, (6,)), 277: (SHORT, (3,))}
    data = with_segments(entries | {278: (LONG, (step * down,)), 530: (SHORT, (across, down))}, strips)
    full = colours.repeat(down, 0).repeat(across, 1)[:, :30].astype(float) - 128
    y, cb, cr = luma[:, :30], full[..., 0], full[..., 1]
    shown = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)
    assert np.abs(decode_image(data).rgb - shown).max() <= 0.6


@pytest.mark.parametrize(("kind", "bits", "within"), [(8, 8, 10), (9, 8, 10), (8, 16, 1), (9, 16, 1)])
def test_lab_becomes_srgb(kind: int, bits: int, within: int) -> None:
    """CIELab has signed a and b, ICCLab has them shifted, and in 16 bits another end of lightness."""
    # Of D50, as Lindbloom's tables have them.
    lab = {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (54.29, 80.81, 69.89),
        (0, 255, 0): (87.82, -79.28, 80.99),
        (0, 0, 255): (29.57, 68.29, -112.03),
        (119, 119, 119): (50.03, 0, 0),
    }
    light, a, b = np.array(list(lab.values())).T
    unit = 1 << bits - 8
    if kind == 8:
        samples = np.rint([light / 100 * ((1 << bits) - 1), a * unit, b * unit]).astype(int) % (1 << bits)
    else:
        samples = np.rint(np.array([light / 100 * 255, a + 128, b + 128]) * unit).astype(int)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture = decode_image(tiff(samples.T[None], bits, kind, tags={34675: (BYTE, tuple(profile))}))
    assert np.abs(picture.rgb[0].astype(int) - np.array(list(lab))).max() <= within
    assert picture.icc == "none"


@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG])
def test_an_orientation_of_any_integer_type_counts(kind: int) -> None:
    picture = decode_image(tiff(RGB, 8, 2, tags={274: (kind, (6,))}))
    np.testing.assert_array_equal(picture.rgb, np.rot90(RGB, -1))
    assert picture.exif_orientation == 6


def test_what_files_leave_out_is_filled_in() -> None:
    """Programs leave out bytes of strips, what the samples are, and how many rows a strip has."""
    for data in (
        tiff(RGB, 8, None),
        tiff(RGB, 8, 2, tags={278: (LONG, (2**32 - 1,))}),
        tiff(RGB, 8, 2, tags={279: (LONG, (0,))}),
        tiff(RGB, 8, 2, tags={258: (SHORT, (8,))}),
        b"II\0*" + tiff(RGB, 8, 2)[4:],
        b"MM*\0" + tiff(RGB, 8, 2, order=">")[4:],
    ):
        np.testing.assert_array_equal(decode_image(data).rgb, RGB)
    np.testing.assert_array_equal(decode_image(tiff(GRAY, 8, None)).rgb[..., :1], GRAY)


@pytest.mark.parametrize(
    ("data", "error_class", "said"),
    [
        (tiff(noise(9, 9, 5), 8, 1, extra=(0,) * 4), "UnsupportedFormat", "5 samples per pixel"),
        (tiff(noise(9, 9, 9), 8, 2, extra=(0,) * 6), "UnsupportedFormat", "9 samples per pixel"),
        (tiff(noise(9, 9, 2), 8, 2), "UnsupportedFormat", "2 samples per pixel, but RGB needs 3"),
        (tiff(noise(9, 9, 1), 32, 1), "UnsupportedMode", "32-bit integer samples"),
        (written(np.zeros((9, 9), np.float32)), "UnsupportedMode", "32-bit floating-point samples"),
        (written(np.zeros((9, 9), np.float16)), "UnsupportedMode", "16-bit floating-point samples"),
        (written(np.zeros((9, 9), np.int16)), "UnsupportedMode", "16-bit signed integer samples"),
        (written(np.zeros((9, 9), np.complex64)), "UnsupportedMode", "64-bit complex samples"),
        (written(np.zeros((9, 9, 3), np.float32), photometric="rgb"), "UnsupportedMode", "floating-point"),
        (tiff(noise(9, 9, 3), 8, 2, tags={258: (SHORT, (5, 6, 5))}), "UnsupportedFormat", "samples of 5, 6 bits"),
        (tiff(noise(9, 9, 3), 8, 32845), "UnsupportedFormat", "LogLuv"),
        (tiff(noise(9, 9, 1), 8, 4), "UnsupportedFormat", "transparency mask"),
        (tiff(noise(9, 9, 4), 8, 5, tags={332: (SHORT, (2,))}), "UnsupportedFormat", "inks other than CMYK"),
        (tiff(noise(9, 9, 1), 8, 1, tags={259: (SHORT, (32809,))}), "UnsupportedFormat", "ThunderScan"),
        (tiff(noise(9, 9, 1), 8, 1, tags={259: (SHORT, (12345,))}), "UnsupportedFormat", "compression 12345"),
        (tiff(noise(9, 9, 1), 8, 1, tags={32997: (LONG, (9,))}), "UnsupportedFormat", "a volume of 9 slices"),
        (tiff(noise(9, 9, 1), 8, 77), "UnsupportedFormat", "photometric interpretation 77"),
        (tiff(noise(9, 9, 3), 8, 2, rows=3, tags={279: (LONG, (81, 0, 81))}), "UnsupportedFormat", "sparse"),
        (tiff(noise(9, 9, 1), 16, 32803), "UnsupportedFormat", "camera's raw file"),
        (tiff(noise(9, 9, 3), 8, 2, tags={50706: (BYTE, (1, 4, 0, 0))}), "UnsupportedFormat", "camera's raw file"),
        (tiff(noise(9, 9, 1), 8, 1, tags={259: (SHORT, (7,)), 258: (SHORT, (12,))}), "UnsupportedFormat", "JPEG of 12-bit"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(data: bytes, error_class: str, said: str) -> None:
    """It is never said that a TIFF is in an unknown format."""
    assert reject(data)[0] == error_class
    assert said in reject(data)[1]
    assert reject(data)[1].startswith(("TIFF with", "a camera's raw file"))


def test_raw_files_of_cameras_are_named() -> None:
    """They begin with a small picture, which is not what the user means."""
    raw = tiff(noise(64, 64, 1), 16, 32803)
    small = bytearray(tiffs(tiff(RGB, 8, 2, tags={254: (LONG, (1,)), 330: (LONG, (0,))}), raw))
    first = struct.unpack_from("<I", small, 4)[0]
    count = struct.unpack_from("<H", small, first)[0]
    after = struct.unpack_from("<I", small, first + 2 + 12 * count)[0]
    for at in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from("<H", small, at)[0] == 330:
            struct.pack_into("<I", small, at + 8, after)
    struct.pack_into("<I", small, first + 2 + 12 * count, 0)
    canon = bytearray(tiff(RGB, 8, 2))
    canon[8:12] = b"CR\2\0"
    for data in (bytes(small), bytes(canon)):
        assert reject(data)[0] == "UnsupportedFormat"
        assert "camera's raw file" in reject(data)[1]


def test_the_picture_is_read_and_not_its_thumbnail() -> None:
    thumbnail = tiff(RGB[::4, ::4], 8, 2, tags={254: (LONG, (1,))})
    mask = tiff(GRAY, 8, 4, tags={254: (LONG, (4,))})
    old = tiff(RGB[::4, ::4], 8, 2, tags={255: (SHORT, (2,))})
    empty = with_segments({254: (LONG, (0,))}, [b""])
    other = tiff(RGB[::-1], 8, 2)
    for pages, frames in (
        ((thumbnail, tiff(RGB, 8, 2), other), 2),
        ((old, tiff(RGB, 8, 2)), 1),
        ((mask, tiff(RGB, 8, 2), mask, thumbnail), 1),
        ((empty, tiff(RGB, 8, 2)), 2),
        ((tiff(RGB, 8, 2), thumbnail, thumbnail), 1),
        ((tiff(RGB, 8, 2), other, other, other), 4),
    ):
        picture = decode_image(tiffs(*pages))
        np.testing.assert_array_equal(picture.rgb, RGB)
        assert (picture.frames, read_pixel_count(tiffs(*pages))) == (frames, H * W)
    small = decode_image(thumbnail)
    assert (small.rgb.shape, small.frames) == ((6, 9, 3), 1)


def test_a_pyramid_below_its_picture_is_left_alone() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(RGB, subifds=2, photometric="rgb", metadata=None)
        writer.write(RGB[::2, ::2], subfiletype=1, photometric="rgb", metadata=None)
        writer.write(RGB[::4, ::4], subfiletype=1, photometric="rgb", metadata=None)
        writer.write(RGB[::-1], photometric="rgb", metadata=None)
    picture = decode_image(out.getvalue())
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.frames == 2


def test_stacks_of_microscopes_give_their_first_page() -> None:
    stack = np.stack([GRAY[..., 0].astype(np.uint16) * 257 + n for n in range(5)])
    for options in ({"imagej": True}, {"ome": True}, {}):
        out = io.BytesIO()
        tifffile.imwrite(out, stack, photometric="minisblack", **options)
        picture = decode_image(out.getvalue())
        np.testing.assert_array_equal(picture.rgb[..., :1], GRAY)
        assert (picture.frames, picture.bit_depth) == (5, 16)


def test_metadata_of_a_bigtiff_is_carried() -> None:
    """Its profile, XMP and EXIF have larger entries."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {
        305: (2, tuple(b"a program\0")),
        34675: (7, tuple(profile)),
        700: (BYTE, tuple(XMP)),
        33432: (2, tuple(b"an owner\0")),
    }
    for order in "<>":
        picture = decode_image(tiff(RGB, 8, 2, big=True, order=order, tags=tags), config=ImageConfig(icc="keep"))
        assert picture.metadata.xmp is not None
        assert "é".encode() in picture.metadata.xmp
        assert picture.profile == profile
        assert picture.metadata.exif is not None
        assert picture.metadata.exif.main[Base.Copyright][2] == b"an owner\0"


CODECS = (None, "lzw", "deflate", "packbits", "lzma", "zstd", "lerc", "jpeg", "webp", "jpeg2000", "png")


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("layout", [{"rowsperstrip": 64}, {"rowsperstrip": 16}, {"tile": (32, 32)}], ids=str)
def test_a_strip_that_is_cut_off_is_a_broken_image(compression: str | None, layout: dict[str, Any]) -> None:
    """Decoders give what they have, and the rest of the picture would be gray."""
    data = written(noise(64, 64, 3), photometric="rgb", compression=compression, **layout)
    decode_image(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets, counts = file.pages[0].dataoffsets, file.pages[0].databytecounts
        place = file.pages[0].tags[325 if "tile" in layout else 279]
        kind = "H" if place.dtype == SHORT else "I"
    for n in (0, len(offsets) - 1):
        for left in (0.1, 0.5, 0.9):
            cut = bytearray(data)
            at = place.valueoffset + n * struct.calcsize(kind)
            struct.pack_into(f"<{kind}", cut, at, max(1, int(counts[n] * left)))
            assert reject(bytes(cut))[0] == "BrokenImage"
    # What is written behind the pixels is moved in front, so that the file can be cut.
    assert offsets[-1] + counts[-1] <= len(data)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("options", [0, 1, 4, 5])
def test_a_damaged_fax_strip_is_a_broken_image(compression: str, options: int) -> None:
    """No decoder of fax codes says that it met something wrong: half a page would be white."""
    image = Image.fromarray(np.kron(noise(16, 12) > 128, np.ones((6, 5), bool)))
    out = io.BytesIO()
    if compression != "group3" and options:
        pytest.skip("only Group 3 has options")
    image.save(out, "TIFF", compression=compression, tiffinfo={278: image.height, 292: options})
    data = out.getvalue()
    np.testing.assert_array_equal(decode_image(data).rgb[..., 0] > 0, np.asarray(image))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (offset,), (count,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
        place = file.pages[0].tags[279]
    for left in range(1, count - 6, 29):
        cut = bytearray(data)
        struct.pack_into("<I" if place.dtype == LONG else "<H", cut, place.valueoffset, left)
        assert reject(bytes(cut))[0] == "BrokenImage"
    if options & 1:
        return
    damaged = 0
    for at in range(offset + 2, offset + count - 6, 7):
        hurt = bytearray(data)
        hurt[at] ^= 0x5A
        try:
            decode_image(bytes(hurt))
        except ImageError as e:
            damaged += e.error_class == "BrokenImage"
    # Some changes are the code of another picture.
    assert damaged > 0.9 * (count - 8) / 7


@pytest.mark.parametrize(
    "tags",
    [
        {322: (LONG, (65_536,)), 323: (LONG, (65_536,)), 324: (LONG, (8,)), 325: (LONG, (100,))},
        {322: (LONG, (2**31,)), 323: (LONG, (2**31,)), 324: (LONG, (8,)), 325: (LONG, (100,))},
        {322: (LONG, (1,)), 323: (LONG, (1,)), 324: (LONG, (8,) * 864), 325: (LONG, (100,) * 864)},
        {279: (LONG, (2**32 - 1,))},
        {278: (LONG, (0,))},
        {277: (SHORT, (65_535,))},
        {258: (SHORT, (65_535,))},
        {258: (SHORT, (0,))},
        {256: (LONG, (0,))},
        {256: (11, (float("nan"),))},
        {530: (SHORT, (0, 0)), 262: (SHORT, (6,))},
        {529: (11, (float("inf"),) * 3), 530: (SHORT, (1, 1)), 262: (SHORT, (6,))},
        {317: (SHORT, (99,)), 259: (SHORT, (8,))},
    ],
    ids=str,
)
def test_a_directory_may_say_anything(tags: dict[int, tuple[int, tuple[int, ...]]]) -> None:
    tracemalloc.start()
    picture = picture_or_reason(tiff(noise(H, W, 3), 8, 2, tags=tags))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    assert not isinstance(picture, DecodedImage) or picture.rgb.shape == (H, W, 3)


def test_a_chain_of_pages_may_be_a_ring() -> None:
    data = bytearray(tiffs(tiff(RGB, 8, 2), tiff(RGB, 8, 2)))
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0])
    for target in (first, second, 0xFFFFFF00, 4):
        at = second + 2 + 12 * struct.unpack_from("<H", data, second)[0]
        struct.pack_into("<I", data, at, target)
        assert decode_image(bytes(data)).frames >= 2


def test_more_strips_than_any_picture_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_page, "MAX_SEGMENTS", 10)
    assert "24 strips or tiles" in reject(tiff(RGB, 8, 2, rows=1))[1]


def test_too_many_pixels_are_refused_before_a_tiff_is_decoded() -> None:
    data = tiff(RGB, 8, 2, tags={256: (LONG, (60_000,)), 257: (LONG, (60_000,))})
    assert reject(data)[0] == "TooManyPixels"
    assert read_pixel_count(data) == 60_000**2


def test_exif_of_a_tiff_is_that_of_its_first_page() -> None:
    exif = Image.Exif()
    exif[Base.Artist] = "someone"
    exif.get_ifd(IFD.Exif)[Base.CameraOwnerName] = "an owner"
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "TIFF", exif=exif, compression="tiff_lzw")
    picture = decode_image(out.getvalue())
    assert picture.metadata.exif is not None
    assert Base.Artist in picture.metadata.exif.main


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("form", ["tables", "strips", "stream"])
def test_old_style_jpeg_is_read(subsampling: int, form: str) -> None:
    """Its tables stand in the file without markers, or all of it is a JPEG in the file."""
    out = io.BytesIO()
    options = {"restart_marker_rows": 1} if form == "strips" else {}
    Image.fromarray(scene(48, 64)).save(out, "JPEG", quality=95, subsampling=subsampling, **options)
    whole = out.getvalue()
    shown = np.asarray(Image.open(io.BytesIO(whole)))
    across, down = ((1, 1), (2, 1), (2, 2))[subsampling]
    structure = parse_structure(whole)
    quantization, huffman = {}, {}
    for segment in structure.segments:
        content = whole[segment.start : segment.end]
        if segment.marker == 0xDB:
            quantization[content[0]] = content[1:]
        elif segment.marker == 0xC4:
            huffman[content[0]] = content[1:]
    scan = whole[structure.first_scan.end : -2]
    strips = re.split(rb"\xff[\xd0-\xd7]", scan) if form == "strips" else [scan]
    blobs = [quantization[0], quantization[1], huffman[0], huffman[1], huffman[16], huffman[17]]
    if form == "stream":
        blobs = [whole]
    parts = [*strips, *blobs]
    entries = {256: (LONG, (64,)), 257: (LONG, (48,)), 258: (SHORT, (8, 8, 8)), 259: (SHORT, (6,)), 277: (SHORT, (3,))}
    entries |= {262: (SHORT, (6,)), 278: (LONG, (8 * down if form == "strips" else 48,)), 530: (SHORT, (across, down))}
    # The tables lie behind the strips.
    places, at = [], 8
    for part in parts:
        places.append(at)
        at += len(part) + len(part) % 2
    behind = places[len(strips) :]
    entries |= {273: (LONG, tuple(places[: len(strips)])), 279: (LONG, tuple(map(len, strips)))}
    if form == "stream":
        entries |= {513: (LONG, (behind[0],)), 514: (LONG, (len(whole),))}
    else:
        q0, q1, dc0, dc1, ac0, ac1 = behind
        entries |= {519: (LONG, (q0, q1, q1)), 520: (LONG, (dc0, dc1, dc1)), 521: (LONG, (ac0, ac1, ac1))}
    data = with_segments(entries, parts)
    np.testing.assert_array_equal(decode_image(data).rgb, shown)
    lost = {513: (LONG, (len(data) - 2,)), 519: (LONG, (1,))}
    assert reject(with_segments(entries | lost, parts))[0] == "BrokenImage"
