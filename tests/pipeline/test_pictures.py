import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo

from models.metrics import psnr_db
from pipeline.config import RunConfig, validate
from pipeline.errors import ConfigError
from pipeline.images import pixels
from pipeline.images.headers import depth_of
from pipeline.images.pixels import ImageError, PixelConfig, decode, encode, output_format
from pipeline.output.verify import verify
from pipeline.resolve import plan_of, resolve
from pipeline.run import run
from pipeline.storage import Store

H, W = 80, 120
KEEP = PixelConfig(icc="keep")
METADATA_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
LOSSLESS = {"PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(H,W,3) uint8 of a real photograph."""
    image = Image.open(str(files("skimage.data").joinpath("coffee.png"))).convert("RGB")
    return np.asarray(image.crop((150, 80, 150 + W, 80 + H)))


def saved(image: Image.Image | np.ndarray, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, image_format, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def rewritten(data: bytes, image_format: str = "", config: PixelConfig = PixelConfig()) -> Image.Image:
    """The file that an image becomes when its pixels stay as they are."""
    picture = decode(data, config=config)
    return opened(encode(picture.rgb, picture, image_format or output_format(picture.format), config.quality))


# ── profiles ───────────────────────────────────────────────────────────────────────────────────────────────────────

# Chromaticities and gammas as their standards give them; Display P3 has sRGB's curve, near enough to 2.2 for these tests.
ADOBE_RGB = np.array([[0.64, 0.33], [0.21, 0.71], [0.15, 0.06]])
DISPLAY_P3 = np.array([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]])
SRGB = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
D65, D50 = np.array([0.9505, 1.0, 1.0891]), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: np.ndarray) -> np.ndarray:
    """Linear RGB with white D65 to XYZ (3,3)."""
    columns = np.column_stack([primaries[:, 0] / primaries[:, 1], np.ones(3), (1 - primaries.sum(1)) / primaries[:, 1]]).T
    return columns * np.linalg.solve(columns, D65)


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2."""
    tags = {
        b"desc": b"desc\0\0\0\0\0\0\0\5test\0".ljust(103, b"\0"),
        b"wtpt": xyz(D50),
        b"cprt": b"text\0\0\0\0none\0",
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) - 4 + len(body) + 4, b"lcms", 0x02100000, kind, space, pcs)
    return (
        (head + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp").ljust(68, b"\0")
        + xyz(D50)[8:]
        + b"\0" * 48
        + table
        + body
    )


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(np.asarray(values) * 65536).astype(int))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(primaries: np.ndarray, curve: float = 2.19921875) -> bytes:
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD @ to_xyz(primaries)
    columns = {b"%cXYZ" % c: xyz(adapted[:, n]) for n, c in enumerate(b"rgb")}
    return profile(b"RGB ", columns | {b"%cTRC" % c: gamma(curve) for c in b"rgb"})


def gray_profile(curve: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(curve)})


def cmyk_profile() -> bytes:
    """Inks that are darker and less pure than their complements: the Lab of each corner, and lines between."""
    corners = []
    for ink in np.ndindex(2, 2, 2, 2):
        light = np.prod([1 - a * b for a, b in zip(ink, (0.4, 0.5, 0.1, 0.9), strict=True)])
        a, b = -30 * ink[0] + 65 * ink[1] - 5 * ink[2], -45 * ink[0] - 5 * ink[1] + 80 * ink[2]
        corners.append((255 * light, 128 + a * (1 - ink[3]), 128 + b * (1 - ink[3])))
    line = bytes(range(256))
    table = np.clip(np.round(corners), 0, 255).astype(np.uint8).tobytes()
    unit = struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    return profile(b"CMYK", {b"A2B0": b"mft1\0\0\0\0\4\3\2\0" + unit + 4 * line + table + 3 * line}, b"prtr", b"Lab ")


def as_tagged(rgb: np.ndarray, primaries: np.ndarray, curve: float = 2.19921875) -> np.ndarray:
    """sRGB (…,3) uint8 as the same colours in another space, by its definition and without a profile."""
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    other = np.linalg.solve(to_xyz(primaries), to_xyz(SRGB) @ linear.reshape(-1, 3).T).T
    return np.round(255 * np.clip(other, 0, 1) ** (1 / curve)).astype(np.uint8).reshape(rgb.shape)


SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3], ids=["Adobe RGB", "Display P3"])
def test_a_wide_gamut_file_has_the_colours_of_its_srgb_twin(photo, primaries, image_format):
    tagged = as_tagged(photo, primaries)
    assert psnr_db(tagged, photo) < 35  # without its profile it looks dull
    options = {"quality": 98} if image_format in ("JPEG", "AVIF") else LOSSLESS[image_format]
    data = saved(tagged, image_format, icc_profile=rgb_profile(primaries), **options)
    picture = decode(data)
    assert picture.icc == "converted"
    assert psnr_db(picture.rgb, photo) > (36 if image_format in ("JPEG", "AVIF") else 44)
    # What is written is sRGB and says nothing else.
    assert "icc_profile" not in rewritten(data).info


def test_a_kept_profile_leaves_the_pixels_and_goes_with_them(photo):
    tagged, icc = as_tagged(photo, ADOBE_RGB), rgb_profile(ADOBE_RGB)
    data = saved(tagged, "PNG", icc_profile=icc)
    picture = decode(data, config=KEEP)
    assert picture.icc == "kept"
    np.testing.assert_array_equal(picture.rgb, tagged)
    for image_format in METADATA_FORMATS:
        again = encode(picture.rgb, picture, image_format)
        assert opened(again).info["icc_profile"] == icc
        assert psnr_db(decode(again).rgb, photo) > 33  # and who applies it sees the photo
    assert "icc_profile" not in opened(encode(picture.rgb, picture, "BMP")).info


def test_a_file_tagged_as_srgb_is_not_touched(photo):
    picture = decode(saved(photo, "PNG", icc_profile=SRGB_PROFILE))
    np.testing.assert_array_equal(picture.rgb, photo)
    assert picture.icc == "none"
    gray = decode(saved(photo[..., 1], "PNG", icc_profile=SRGB_PROFILE))
    np.testing.assert_array_equal(gray.rgb[..., 0], photo[..., 1])
    assert gray.icc == "none"
    assert decode(saved(photo, "PNG")).icc == "none"


def test_gray_with_a_profile_is_converted_and_stays_gray(photo):
    linear = np.round(255 * (photo[..., 1] / 255) ** 2.2).astype(np.uint8)
    for data in (
        saved(linear, "PNG", icc_profile=gray_profile(1.0)),
        saved(linear, "PNG", icc_profile=rgb_profile(ADOBE_RGB, 1.0)),
        saved(Image.merge("LA", [Image.fromarray(linear)] * 2), "PNG", icc_profile=gray_profile(1.0)),
        saved(linear.astype(np.uint16) * 257, "PNG", icc_profile=gray_profile(1.0)),
    ):
        picture = decode(data)
        assert (picture.icc, picture.gray) == ("converted", True)
        assert np.ptp(picture.rgb, 2).max() == 0
        assert np.abs(picture.rgb[..., 0].astype(int) - photo[..., 1])[linear > 20].max() <= 5
        assert rewritten(data).mode in ("L", "LA")
    kept = decode(saved(linear, "PNG", icc_profile=gray_profile(1.0)), config=KEEP)
    np.testing.assert_array_equal(kept.rgb[..., 0], linear)
    assert opened(encode(kept.rgb, kept, "PNG")).info["icc_profile"] == gray_profile(1.0)
    # A profile of gray would be wrong for colours.
    kept.gray = False
    assert "icc_profile" not in opened(encode(kept.rgb, kept, "PNG")).info


def test_transparency_is_not_a_colour(photo):
    alpha = np.tile(np.arange(W, dtype=np.uint8) * 2, (H, 1))
    picture = decode(saved(np.dstack([as_tagged(photo, ADOBE_RGB), alpha]), "PNG", icc_profile=rgb_profile(ADOBE_RGB)))
    assert picture.icc == "converted"
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert psnr_db(picture.rgb, photo) > 44
    palette = Image.fromarray(as_tagged(photo, ADOBE_RGB)).quantize(64)
    palette.info["transparency"] = 3
    picture = decode(saved(palette, "PNG", icc_profile=rgb_profile(ADOBE_RGB)))
    assert picture.icc == "converted"
    assert picture.alpha is not None
    assert psnr_db(picture.rgb, photo) > 27


@pytest.mark.parametrize("config", [PixelConfig(), KEEP])
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_by_its_profile(photo, image_format, config):
    cmyk = Image.fromarray(photo).convert("CMYK")
    data = saved(cmyk, image_format, icc_profile=cmyk_profile(), **({"quality": 98} if image_format == "JPEG" else {}))
    picture = decode(data, config=config)
    assert picture.icc == "converted"
    assert picture.profile is None
    expected = ImageCms.profileToProfile(
        cmyk,
        ImageCms.ImageCmsProfile(io.BytesIO(cmyk_profile())),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert psnr_db(picture.rgb, np.asarray(expected)) > 32
    assert psnr_db(picture.rgb, np.asarray(cmyk.convert("RGB"))) < 25
    assert decode(saved(cmyk, image_format)).icc == "none"


@pytest.mark.parametrize("config", [PixelConfig(), KEEP])
def test_a_broken_or_foreign_profile_rejects_nothing_and_goes_nowhere(photo, config):
    whole = rgb_profile(ADOBE_RGB)
    broken = [b"no profile", whole[:200], b"\0" * 4000, whole[:128] + b"\xff" * 400, cmyk_profile(), gray_profile(2.2)]
    for icc in broken:
        data = saved(photo, "PNG", icc_profile=icc)
        picture = decode(data, config=config)
        assert picture.icc == "unreadable"
        np.testing.assert_array_equal(picture.rgb, photo)
        assert "icc_profile" not in rewritten(data, config=config).info


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=8), st.sampled_from(["RGB", "L", "CMYK"]))
@settings(max_examples=150)
def test_any_byte_of_a_profile_may_be_anything(changes, mode):
    icc = bytearray({"RGB": rgb_profile(ADOBE_RGB), "L": gray_profile(2.0), "CMYK": cmyk_profile()}[mode])
    for place, value in changes:
        icc[place % len(icc)] = value
    picture = decode(saved(Image.new(mode, (9, 7)), "TIFF", icc_profile=bytes(icc)))
    assert picture.icc in ("none", "converted", "unreadable")
    assert picture.rgb.shape == (7, 9, 3)


def test_threads_share_a_transform(photo):
    data = saved(as_tagged(photo, ADOBE_RGB), "PNG", icc_profile=rgb_profile(ADOBE_RGB))
    one = decode(data).rgb
    with ThreadPoolExecutor(4) as pool:
        for picture in pool.map(decode, [data] * 32):
            np.testing.assert_array_equal(picture.rgb, one)


# ── EXIF and XMP ───────────────────────────────────────────────────────────────────────────────────────────────────

OWNER = "© Müller".encode()
MAKER, PLACE = b"whatever the camera wrote " * 20, "a place that nobody is to know"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Artist="\xc3\xa9 %s"/>'
    b"</rdf:RDF></x:xmpmeta>"
) % PLACE.encode()


def camera_exif(orientation: int = 6) -> bytes:
    """EXIF as a telephone writes it: with a place, a maker's note, rationals of 0/0, and a thumbnail."""
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
    }
    exif[IFD.GPSInfo] = {
        GPS.GPSLatitudeRef: "N",
        GPS.GPSLatitude: (48.0, 12.0, 30.5),
        GPS.GPSAreaInformation: PLACE.encode(),
    }
    content = bytearray(exif.tobytes())
    # Pillow writes no thumbnail: the main directory is told of a second one, at the end.
    order, base = (">", 6) if content[6:8] == b"MM" else ("<", 6)
    (count,) = struct.unpack_from(order + "H", content, base + 8)
    struct.pack_into(order + "I", content, base + 10 + 12 * count, len(content) - base)
    thumbnail = saved(Image.new("RGB", (16, 12), (255, 0, 0)), "JPEG")
    start = len(content) - base + 2 + 24 + 4
    content += struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0201, 4, 1, start)
    content += struct.pack(order + "HHII", 0x0202, 4, 1, len(thumbnail)) + b"\0" * 4 + thumbnail
    return bytes(content)


def with_metadata(image: np.ndarray, image_format: str) -> bytes:
    exif, png = Image.Exif(), PngInfo()
    exif.load(camera_exif())
    if image_format == "TIFF":
        exif[Base.XMLPacket] = XMP
        return saved(image, "TIFF", exif=exif)
    png.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return saved(image, image_format, exif=camera_exif(), xmp=XMP, pnginfo=png)


@pytest.mark.parametrize("source", METADATA_FORMATS)
@pytest.mark.parametrize("image_format", METADATA_FORMATS)
def test_metadata_is_carried_and_is_true_of_the_upright_picture(photo, source, image_format):
    data = with_metadata(photo, source)
    image = rewritten(data, image_format)
    assert image.size == (H, W)
    exif, details = image.getexif(), image.getexif().get_ifd(IFD.Exif)
    assert exif.get(Base.Orientation, 1) == 1
    assert (exif[Base.Make], exif[Base.XResolution]) == ("Maker", 300)
    # Pillow reads bytes of text as Latin-1, and wrote no better than ASCII into the sources of these two formats.
    owner = b"?? M??ller" if source in ("TIFF", "AVIF") else OWNER
    assert exif[Base.Copyright].encode("latin-1") == owner
    assert (details[Base.DateTimeOriginal], details[Base.MakerNote]) == ("2024:05:06 07:08:09", MAKER)
    assert details[Base.ExposureTime] == pytest.approx(1 / 250)
    assert Base.ExifImageWidth not in details
    assert details[Base.ColorSpace] == 0xFFFF
    assert exif.get_ifd(IFD.GPSInfo)[GPS.GPSLatitude] == (48, 12, 30.5)
    assert b'tiff:Orientation="6"' not in image.info["xmp"]
    assert "é".encode() in image.info["xmp"]
    # Who applies EXIF or XMP turns it no further.
    assert decode(encode(np.asarray(image), decode(data), image_format)).rgb.shape == (W, H, 3)
    thumbnail = saved(Image.new("RGB", (16, 12), (255, 0, 0)), "JPEG")
    if source == "JPEG":
        assert thumbnail in data
    assert thumbnail not in encode(decode(data).rgb, decode(data), image_format)


@pytest.mark.parametrize("image_format", METADATA_FORMATS)
def test_strip_gps_leaves_no_trace_of_the_place(photo, image_format):
    data = with_metadata(photo, image_format)
    picture = decode(data, config=PixelConfig(metadata="strip_gps"))
    out = encode(picture.rgb, picture, image_format)
    image = opened(out)
    assert image.getexif()[Base.Make] == "Maker"
    assert image.getexif().get_ifd(IFD.Exif)[Base.MakerNote] == MAKER
    assert IFD.GPSInfo not in image.getexif()
    assert "xmp" not in image.info
    assert PLACE.encode() not in out


@pytest.mark.parametrize("image_format", METADATA_FORMATS)
def test_strip_leaves_nothing(photo, image_format):
    picture = decode(with_metadata(photo, image_format), config=PixelConfig(metadata="strip"))
    image = opened(encode(picture.rgb, picture, image_format))
    assert "xmp" not in image.info
    assert "exif" not in image.info
    assert not image.getexif().keys() & {Base.Make, Base.Copyright, Base.Orientation, IFD.Exif, IFD.GPSInfo}


def test_exif_of_a_converted_picture_says_srgb(photo):
    data = saved(photo, "JPEG", exif=camera_exif(1), icc_profile=rgb_profile(ADOBE_RGB))
    assert rewritten(data).getexif().get_ifd(IFD.Exif)[Base.ColorSpace] == 1


def test_exif_is_found_beside_whatever_else_a_tiff_holds(photo):
    exif = Image.Exif()
    exif.load(camera_exif(1))
    exif[34377] = b"8BIM" + bytes(3_000_000)  # Photoshop's layers
    assert rewritten(saved(photo, "TIFF", exif=exif), "JPEG").getexif().get_ifd(IFD.Exif)[Base.MakerNote] == MAKER


def test_metadata_that_a_jpeg_cannot_hold_is_left_out(photo):
    exif = Image.Exif()
    exif[Base.Make], exif[Base.ImageDescription] = "Maker", "x" * 70_000
    data = saved(photo, "TIFF", exif=exif)
    assert rewritten(data, "WEBP").getexif()[Base.Make] == "Maker"
    assert Base.Make not in rewritten(data, "JPEG").getexif()
    long = XMP.replace(b"adobe:ns", b" " * 70_000 + b"adobe:ns")
    assert "xmp" in rewritten(saved(photo, "WEBP", xmp=long)).info
    assert "xmp" not in rewritten(saved(photo, "WEBP", xmp=long), "JPEG").info


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=10),
    st.integers(0, 1500),
    st.binary(max_size=60),
    st.sampled_from(METADATA_FORMATS),
    st.sampled_from(["keep", "strip_gps"]),
)
@settings(max_examples=200)
def test_broken_metadata_rejects_nothing(image_format, changes, end, xmp, target, metadata):
    exif = bytearray(camera_exif()[: 12 + end])
    for place, value in changes:
        exif[6 + place % (len(exif) - 6)] = value
    data = saved(Image.new("RGB", (8, 8), (9, 99, 199)), image_format, exif=bytes(exif), xmp=xmp)
    picture = decode(data, config=PixelConfig(metadata=metadata))
    assert opened(encode(picture.rgb, picture, target)).size == picture.rgb.shape[1::-1]


def test_exif_whose_values_lie_on_each_other_does_not_grow(photo):
    main = struct.pack("<HHHIII", 1, IFD.Exif, 4, 1, 26, 0)
    many = b"".join(struct.pack("<HHII", tag, 7, 300_000, 0) for tag in range(5000))
    block = b"II*\0\x08\0\0\0" + main + struct.pack("<H", 5000) + many + bytes(300_000)
    picture = decode(saved(photo, "PNG", exif=b"Exif\0\0" + block))
    assert picture.exif is None
    np.testing.assert_array_equal(picture.rgb, photo)


# ── transparency ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_transparent_picture_is_laid_onto_a_colour(photo):
    alpha = np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))
    picture = decode(saved(np.dstack([photo, alpha]), "PNG"), config=PixelConfig(alpha="#FF8000"))
    share = alpha[..., None] / 255
    assert np.abs(picture.rgb - (photo * share + np.array([255, 128, 0]) * (1 - share))).max() <= 1
    assert (picture.alpha, picture.has_alpha) == (None, True)
    assert opened(encode(picture.rgb, picture, "PNG")).mode == "RGB"
    opaque = decode(saved(photo, "PNG"), config=PixelConfig(alpha="#ff8000"))
    np.testing.assert_array_equal(opaque.rgb, photo)
    assert not opaque.has_alpha


def test_gray_on_gray_stays_gray_and_gets_a_colour_from_a_colour(photo):
    data = saved(Image.merge("LA", [Image.fromarray(photo[..., n]) for n in (0, 1)]), "PNG")
    assert decode(data, config=PixelConfig(alpha="#808080")).gray
    picture = decode(data, config=PixelConfig(alpha="#ff0000"))
    assert not picture.gray
    assert np.ptp(picture.rgb, 2).max() > 50


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("alpha", None, "quote it"),
        ("alpha", "white", "alpha"),
        ("quality", 0, "greater than or equal to 1"),
        ("format", "gif", "'jpeg', 'png', 'webp', 'tiff' or 'avif'"),
        ("depth", 8, "valid: alpha, format, icc, metadata, quality"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(key, value, said):
    with pytest.raises(ConfigError, match=f"image.{key}|{key}") as caught:
        validate(RunConfig, {"task": "denoise", "image": {key: value}}, "a.yaml")
    assert said in str(caught.value)


# ── formats and depths ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("image_format", "options", "least_db"),
    [("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 38), ("JPEG2000", {}, 99), ("JPEG2000", {"no_jp2": True}, 99)],
)
def test_newer_formats_are_read(photo, image_format, options, least_db):
    for image in (photo, np.dstack([photo, photo[..., 1]])):
        picture = decode(saved(image, image_format, **options))
        assert psnr_db(picture.rgb, photo) > least_db or (picture.rgb == photo).all()
        assert (picture.format, picture.frames, picture.bit_depth) == (image_format, 1, 8)
        assert picture.has_alpha == (image.shape[2] == 4)
    whole = saved(photo, image_format, **options)
    for end in range(0, len(whole), len(whole) // 60):
        with suppress(ImageError):
            decode(whole[:end])


@given(
    st.sampled_from(["AVIF", "JPEG2000"]),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=200)
def test_any_byte_of_a_newer_format_may_be_anything(image_format, changes):
    data = bytearray(saved(Image.linear_gradient("L").resize((24, 16)).convert("RGB"), image_format))
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(ImageError):
        assert decode(bytes(data), 1_000_000).rgb.dtype == np.uint8


def test_too_many_pixels_of_a_newer_format_are_refused(photo):
    for image_format in ("AVIF", "JPEG2000"):
        with pytest.raises(ImageError, match="over the limit") as caught:
            decode(saved(photo, image_format), H * W - 1)
        assert caught.value.error_class == "TooManyPixels"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a\xfa\x3f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
    ],
)
def test_a_format_that_cannot_be_read_is_named(head, name):
    with pytest.raises(ImageError, match=f"^{name} is not supported by this Pillow; convert it$") as caught:
        decode(head + bytes(200))
    assert caught.value.error_class == "UnsupportedFormat"


def png_16(samples: np.ndarray) -> bytes:
    """(H,W,3) uint16 as a PNG, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", *samples.shape[1::-1], 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_16_bits_are_scaled_to_8_and_never_clipped(photo):
    # All of the range: clipping at 255 would leave nothing but white.
    deep = photo.astype(np.uint16) * 257
    for data in (png_16(deep), saved(deep[..., 0], "PNG"), saved(deep[..., 0], "TIFF"), saved(deep[..., 0], "JPEG2000")):
        picture = decode(data)
        np.testing.assert_array_equal(picture.rgb, np.repeat(photo[..., :1], 3, 2) if picture.gray else photo)
        assert picture.bit_depth == 16


def test_more_than_8_bits_are_known_in_every_format(photo):
    """Pillow writes neither: the files' headers are changed to those of such files."""
    avif, jp2 = (bytearray(saved(Image.fromarray(photo), name)) for name in ("AVIF", "JPEG2000"))
    config, planes = avif.index(b"av1C") + 6, avif.index(b"pixi") + 9
    for flags, bits in ((0x00, 8), (0x40, 10), (0x60, 12)):
        avif[config] = avif[config] & 0x9F | flags
        avif[planes : planes + 3] = bytes([bits] * 3)
        assert depth_of(Image.open(io.BytesIO(avif)), bytes(avif)) == bits
    for bits in (8, 12, 16):
        jp2[jp2.index(b"\xff\x4f\xff\x51") + 42] = bits - 1
        assert depth_of(Image.open(io.BytesIO(jp2)), bytes(jp2)) == bits


def test_a_picture_larger_than_a_strip_is_what_it_is_in_one_piece(photo, monkeypatch):
    rgba = np.dstack([photo, photo[..., 1]])
    exif = Image.Exif()
    files = [
        *(saved(rgba, "PNG", exif=oriented(exif, n), icc_profile=rgb_profile(ADOBE_RGB)) for n in range(1, 9)),
        saved(Image.fromarray(photo).quantize(32), "GIF"),
        saved(photo[..., 0].astype(np.uint16) * 257, "PNG"),
        saved(Image.fromarray(photo).convert("CMYK"), "TIFF", icc_profile=cmyk_profile()),
        saved(photo[..., 0], "JPEG", exif=oriented(exif, 5)),
    ]
    whole = [decode(data) for data in files]
    written = [encode(picture.rgb, picture, "PNG") for picture in whole]
    monkeypatch.setattr(pixels, "STRIP_PIXELS", 1_500)
    for data, one, out in zip(files, whole, written, strict=True):
        picture = decode(data)
        np.testing.assert_array_equal(picture.rgb, one.rgb)
        if one.alpha is not None:
            np.testing.assert_array_equal(picture.alpha, one.alpha)
        assert encode(picture.rgb, picture, "PNG") == out


def oriented(exif: Image.Exif, orientation: int) -> bytes:
    exif[Base.Orientation] = orientation
    return exif.tobytes()


def test_quality_makes_smaller_files(photo):
    picture = decode(saved(photo, "PNG"))
    for image_format in ("JPEG", "WEBP", "AVIF"):
        sizes = [len(encode(photo, picture, image_format, quality)) for quality in (50, 80, 95)]
        assert sizes == sorted(set(sizes))
    assert encode(photo, picture, "JPEG") == encode(photo, picture, "JPEG", 95)


# ── through a run ──────────────────────────────────────────────────────────────────────────────────────────────────


def rows(output: Path, folder: str) -> dict[str, dict]:
    return {row["rel_path"]: row for part in (output / folder).glob("*.parquet") for row in pq.read_table(part).to_pylist()}


@pytest.mark.usefixtures("ray_session")
def test_a_folder_of_many_kinds_becomes_one_format(tmp_path, photo):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    alpha = np.dstack([photo, np.tile(np.arange(W, dtype=np.uint8) * 2, (H, 1))])
    kinds = {
        "camera.jpg": with_metadata(photo, "JPEG"),
        "wide.jpg": saved(as_tagged(photo, DISPLAY_P3), "JPEG", quality=95, icc_profile=rgb_profile(DISPLAY_P3)),
        "print.jpg": saved(Image.fromarray(photo).convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "logo.png": saved(alpha, "PNG"),
        "odd.png": saved(photo, "PNG", icc_profile=b"no profile"),
        "new.avif": saved(photo, "AVIF"),
        "archive.jp2": saved(photo, "JPEG2000"),
        "deep.tif": saved(photo[..., 0].astype(np.uint16) * 257, "TIFF"),
        "already.webp": saved(photo, "WEBP"),
        "moves.gif": saved(Image.fromarray(photo), "GIF", save_all=True, append_images=[Image.new("RGB", (W, H))]),
        "burst.mpo": saved(photo, "MPO", save_all=True, append_images=[Image.new("RGB", (W, H))]),
        "phone.heic": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(100),
        "future.JXL": b"\xff\x0a" + bytes(100),
    }
    for name, data in kinds.items():
        (source / name).write_bytes(data)
    image = {"format": "webp", "alpha": "#ffffff", "metadata": "strip_gps", "quality": 90}
    config = RunConfig(task="denoise", input=str(source), output=str(output), image=PixelConfig(**image))
    record = run(config)
    assert (record["planned"], record["ok"], record["rejected"], record["ignored"]) == (13, 11, 2, 0)
    rejects = rows(output, "rejects")
    assert {name: row["error_class"] for name, row in rejects.items()} == dict.fromkeys(
        ("phone.heic", "future.JXL"), "UnsupportedFormat"
    )
    assert rejects["phone.heic"]["error"] == "HEIC is not supported by this Pillow; convert it"
    made = rows(output, "results")
    assert {name for name, row in made.items() if row["icc"] != "none"} == {"wide.jpg", "print.jpg", "odd.png"}
    assert [made[name]["icc"] for name in ("wide.jpg", "print.jpg", "odd.png")] == ["converted", "converted", "unreadable"]
    assert [(name, row["has_alpha"]) for name, row in made.items() if row["has_alpha"]] == [("logo.png", True)]
    assert [made[name]["frames"] for name in ("moves.gif", "burst.mpo", "logo.png")] == [2, 2, 1]
    assert made["deep.tif"]["bit_depth"] == 16
    for name, row in made.items():
        assert row["output_uri"] == f"images/{name}" + ("" if name.endswith(".webp") else ".webp")
        written = opened((output / row["output_uri"]).read_bytes())
        assert written.format == "WEBP"
        assert written.mode == "RGB"
        assert written.size == ((H, W) if name == "camera.jpg" else (W, H))
    assert psnr_db(np.asarray(opened((output / "images/wide.jpg.webp").read_bytes())), photo) > 28
    camera = opened((output / "images/camera.jpg.webp").read_bytes())
    assert camera.getexif()[Base.Make] == "Maker"
    assert IFD.GPSInfo not in camera.getexif()
    assert np.asarray(opened((output / "images/logo.png.webp").read_bytes()))[:, :3].min() > 235
    assert verify(Store(str(output))).problems == []
    assert plan_of(resolve(config)).done == 11
    assert plan_of(resolve(config.model_copy(update={"image": PixelConfig(**image | {"quality": 91})}))).done == 0


def config_of(task: str, folder: Path, **image: object) -> RunConfig:
    folder.mkdir(exist_ok=True)
    return RunConfig(task=task, input=str(folder), output=f"{folder}.out", image=PixelConfig(**image))


def test_only_what_differs_from_the_defaults_is_part_of_a_version(tmp_path):
    plain = resolve(config_of("denoise", tmp_path / "a"))
    assert "image" not in plain.parameters
    assert resolve(config_of("denoise", tmp_path / "a", quality=95, alpha="keep")).parameters == plain.parameters
    changed = resolve(config_of("denoise", tmp_path / "a", alpha="#FFFFFF", icc="keep"))
    assert changed.parameters == plain.parameters | {"image": {"alpha": "#ffffff", "icc": "keep"}}


def test_what_a_task_cannot_do_is_said_before_a_run(tmp_path):
    for task in ("inpaint", "colorize"):
        for image_format in ("jpeg", "webp", "avif"):
            with pytest.raises(ConfigError, match=f"image.format = '{image_format}'.*{task}.*valid: png, tiff"):
                resolve(config_of(task, tmp_path / "a", format=image_format))
        assert (
            output_format("JPEG", True, resolve(config_of(task, tmp_path / "a", format="tiff")).config.image.format)
            == "TIFF"
        )
    for key, value in (("format", "png"), ("icc", "keep"), ("metadata", "strip"), ("quality", 80)):
        with pytest.raises(ConfigError, match=f"image.{key}: compress writes latents"):
            resolve(config_of("compress", tmp_path / "a", **{key: value}))
    resolve(config_of("compress", tmp_path / "a", alpha="#000000"))
    assert [output_format(f, exact=True) for f in ("AVIF", "JPEG2000", "TIFF")] == ["PNG", "PNG", "TIFF"]
    assert [output_format(f) for f in ("AVIF", "JPEG2000")] == ["AVIF", "PNG"]
