"""HEIC: orientation, colours, depth, transparency, several images, damage, and limits before decoding."""

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.orientation import TO_STORED_ORIENTATION
from imagemill.pipeline.images.readers.heif_items import read_items
from tests.support.exact_writers import box, clap
from tests.support.heifs import (
    COLOURS,
    HEIGHT,
    WIDTH,
    Picture,
    colours,
    corners,
    full_box,
    heif_file,
    load,
    picture,
    quadrants,
    size,
    turn,
)
from tests.support.icc import DISPLAY_P3, rgb_profile
from tests.support.sample_images import decode_error_class, encode_as

TURNS = {1: (0, None), 2: (0, 1), 3: (2, None), 4: (0, 0), 5: (1, 0), 6: (3, None), 7: (1, 1), 8: (1, None)}
"""Rotation and mirror of HEIF that make an image upright, by EXIF orientation."""


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = orientation, "Camera"
    return tags.tobytes()


def assert_close(rgb: np.ndarray, expected: np.ndarray, tolerance: int = 2) -> None:
    assert np.abs(corners(rgb).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("orientation", TURNS)
def test_heic_is_turned_once(orientation: int) -> None:
    """The properties of the file turn the picture. EXIF, which repeats the orientation, is ignored."""
    data = heif_file(picture("colour", *turn(*TURNS[orientation])), exif=exif(orientation))
    decoded = decode_image(data)
    assert decoded.exif_orientation == orientation
    assert (decoded.orig_width, decoded.orig_height) == (WIDTH, HEIGHT)
    assert_close(TO_STORED_ORIENTATION[orientation](decoded.rgb), COLOURS)
    assert decoded.metadata.exif is not None


def test_heic_orientation_in_exif_alone_is_ignored() -> None:
    assert_close(decode_image(heif_file(picture(), exif=exif(6))).rgb, COLOURS)


def test_heic_colours_are_converted() -> None:
    """An ICC profile counts more than code points, and PQ is tone mapped."""
    profile = box(b"colr", b"prof" + rgb_profile(DISPLAY_P3))
    by_png = decode_image(encode_as(Image.fromarray(quadrants(8, 8)), "PNG", icc_profile=rgb_profile(DISPLAY_P3)))
    for properties in ((profile,), (profile, colours(9, 16))):
        decoded = decode_image(heif_file(picture("colour", *properties)))
        assert decoded.icc == "converted"
        assert_close(decoded.rgb, corners(by_png.rgb), 8)
    kept = decode_image(heif_file(picture("colour", profile)), config=ImageConfig(icc="keep"))
    assert (kept.icc, kept.profile) == ("kept", rgb_profile(DISPLAY_P3))
    assert decode_image(heif_file(picture("colour", colours(12, 13)))).icc == "converted"
    hdr = decode_image(heif_file(picture("deep", colours(9, 16))))
    assert (hdr.icc, hdr.bit_depth) == ("converted", 10)
    assert not np.abs(corners(hdr.rgb).astype(int) - COLOURS).max() <= 20


def test_heic_of_10_bits_and_gray_are_decoded() -> None:
    deep, gray = decode_image(heif_file(picture("deep"))), decode_image(heif_file(picture("gray")))
    assert (deep.bit_depth, deep.is_gray, gray.bit_depth, gray.is_gray) == (10, False, 8, True)
    assert_close(deep.rgb, COLOURS)
    luma = np.asarray(Image.fromarray(quadrants(64, 96)).convert("L"))
    assert_close(gray.rgb, corners(luma[..., None]))


def test_heic_alpha_is_kept_and_gain_map_is_left_alone() -> None:
    alpha = full_box(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    gain_map = full_box(b"auxC", b"urn:com:apple:photo:2020:aux:hdrgainmap\0")
    for auxiliary, has_alpha in ((alpha, True), (gain_map, False)):
        decoded = decode_image(heif_file(picture(), picture("gray", auxiliary, auxiliary_to=1)))
        assert (decoded.has_alpha, decoded.frames) == (has_alpha, 1)
        assert_close(decoded.rgb, COLOURS)
        if has_alpha:
            luma = np.asarray(Image.fromarray(quadrants(64, 96)).convert("L"))
            assert_close(decoded.alpha[..., None], corners(luma[..., None]))


def test_heic_primary_image_is_decoded() -> None:
    decoded = decode_image(heif_file(picture("gray"), picture("colour", *turn(2)), primary=2))
    assert (decoded.frames, decoded.is_gray) == (2, False)
    assert_close(decoded.rgb[::-1, ::-1], COLOURS)


def grid(columns: int, rows: int, width: int, height: int) -> bytes:
    return bytes([0, 0, rows - 1, columns - 1]) + width.to_bytes(2, "big") + height.to_bytes(2, "big")


def test_heic_grid_is_decoded() -> None:
    """Phones store a photo as a grid of tiles, and the colours of the grid with its tiles."""
    tile = picture("colour", box(b"colr", b"prof" + rgb_profile(DISPLAY_P3)), is_hidden=True)
    whole = Picture(grid(2, 1, 2 * WIDTH, HEIGHT), (size(2 * WIDTH, HEIGHT), *turn(3)), b"grid", tiles=(2, 3))
    decoded = decode_image(heif_file(whole, tile, tile))
    assert (decoded.rgb.shape, decoded.icc, decoded.frames) == ((2 * WIDTH, HEIGHT, 3), "converted", 1)


def test_heic_grid_is_described_by_its_own_tiles() -> None:
    """Other images of the file, such as a gain map, may come first."""
    for name in ("gray", "deep"):
        whole = Picture(grid(2, 1, 2 * WIDTH, HEIGHT), (size(2 * WIDTH, HEIGHT),), b"grid", tiles=(3, 4))
        tile = picture(is_hidden=True)
        decoded = decode_image(heif_file(picture(name), whole, tile, tile, primary=2))
        assert (decoded.is_gray, decoded.bit_depth) == (False, 8)
        assert_close(decoded.rgb[:, :WIDTH], COLOURS)


def test_heic_overlay_is_decoded_up_to_8_bits() -> None:
    """The tiles of its grid say how many bits it has. libheif decodes more than 8 bits to wrong pixels."""
    whole = Picture(grid(1, 1, WIDTH, HEIGHT), (size(),), b"grid", tiles=(4,), is_hidden=True)
    content = bytes(10) + struct.pack(">4H", WIDTH, HEIGHT, 0, 0)
    overlay = Picture(content, (size(),), b"iovl", tiles=(3,))
    assert_close(decode_image(heif_file(picture(), overlay, whole, picture(is_hidden=True), primary=2)).rgb, COLOURS)
    deep = heif_file(picture(), overlay, whole, picture("deep", is_hidden=True), primary=2)
    with pytest.raises(ImageError, match="overlay") as raised:
        decode_image(deep)
    assert raised.value.error_class == "UnsupportedFormat"


def test_heic_profile_of_a_gain_map_is_not_applied() -> None:
    auxiliary = full_box(b"auxC", b"urn:com:apple:photo:2020:aux:hdrgainmap\0")
    gain_map = picture("gray", auxiliary, box(b"colr", b"prof" + rgb_profile(DISPLAY_P3)), auxiliary_to=1)
    avif = encode_as(Image.fromarray(quadrants(HEIGHT, WIDTH)), "AVIF", quality=100, subsampling="4:4:4")
    at = avif.index(b"av1C") - 4
    base = Picture(avif[avif.index(b"mdat") + 4 :], (size(), avif[at : at + 12]), b"av01")
    for data in (heif_file(picture(), gain_map), heif_file(base, gain_map, brand=b"avif")):
        decoded = decode_image(data)
        assert (decoded.icc, decoded.frames) == ("none", 1)
        assert_close(decoded.rgb, COLOURS)


def test_heic_crop_is_applied_or_rejected() -> None:
    decoded = decode_image(heif_file(picture("colour", clap(48, 32, 24, 16, (WIDTH, HEIGHT)), *turn(2))))
    assert (decoded.orig_width, decoded.orig_height) == (48, 32)
    assert_close(decoded.rgb[::-1, ::-1], COLOURS)
    with pytest.raises(ImageError, match=r"^HEIF: the clean aperture \(clap\) is not inside the image") as raised:
        decode_image(heif_file(picture("colour", clap(WIDTH + 2, HEIGHT, -1, 0, (WIDTH, HEIGHT)))))
    assert raised.value.error_class == "BrokenImage"
    with pytest.raises(ImageError, match=r"^HEIF with a crop \(clap\) after a rotation") as raised:
        decode_image(heif_file(picture("colour", *turn(1), clap(48, 32, 8, 32, (HEIGHT, WIDTH)))))
    assert raised.value.error_class == "UnsupportedFormat"


@pytest.mark.parametrize(
    ("name", "offset", "value"), [("deep", 17, 3), ("deep", 17, 6), ("colour", 17, 2), ("colour", 16, 0)]
)
def test_heic_depth_is_that_of_the_coded_picture(name: str, offset: int, value: int) -> None:
    """A changed bit in the decoder configuration would darken the picture, or take its colours."""
    content, configuration = load(name)
    at = 8 + offset
    changed = configuration[:at] + bytes([configuration[at] & 0xF8 | value]) + configuration[at + 1 :]
    with pytest.raises(ImageError, match=r"decoder configuration \(hvcC\)") as raised:
        decode_image(heif_file(Picture(content, (size(), changed))))
    assert raised.value.error_class == "BrokenImage"


def exp_golomb(value: int) -> str:
    return "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"


def configuration_of(width: int, height: int) -> bytes:
    """Return a decoder configuration that declares the size of a coded picture."""
    bits = "0" * 4 + "000" + "1" + "0" * 96 + exp_golomb(0) + exp_golomb(1) + exp_golomb(width) + exp_golomb(height)
    bits += "0" + exp_golomb(0) + exp_golomb(0) + "1"
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    unit = b"\x42\1" + int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\0\0", b"\0\0\3")
    _, configuration = load("colour")
    content = configuration[8 : 8 + 22] + b"\1" + b"\x21\0\1" + len(unit).to_bytes(2, "big") + unit
    return box(b"hvcC", content)


@pytest.mark.parametrize(
    "data",
    [
        heif_file(Picture(load("colour")[0], (size(16_000, 12_000), load("colour")[1]))),
        heif_file(Picture(load("colour")[0], (size(), configuration_of(16_000, 12_000)))),
        heif_file(Picture(grid(2, 1, 16_000, 12_000), (size(),), b"grid", tiles=(2, 2)), picture()),
    ],
    ids=["declared", "coded", "grid"],
)
def test_heic_size_is_checked_before_decoding(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that declares a small picture may contain a large one. libheif is not asked."""
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert read_pixel_count(data) == 16_000 * 12_000
    assert decode_error_class(data) == "TooManyPixels"


def test_heic_truncated_or_zeroed_is_rejected() -> None:
    """No file is a picture of which a part is missing. Zeros in metadata are no damage."""
    data = heif_file(picture(), exif=exif(1))
    for length in range(40, len(data), 7):
        assert decode_error_class(data[:length]) == "BrokenImage", length
    content, configuration = load("colour")
    filler = b"\0\0\1\x2e\x4c\1" + bytes(300)
    zeroed = heif_file(Picture(content + filler, (size(), configuration)))
    assert decode_error_class(zeroed) == "DamagedImage"
    assert decode_image(heif_file(picture(), exif=exif(1) + bytes(300))).format == "HEIC"


def test_heic_without_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError) as raised:
        decode_image(heif_file(picture()))
    assert raised.value.error_class == "MissingExtra"
    assert "pip install 'imagemill[heif]'" in str(raised.value)


def test_heic_of_countless_extents_is_read_at_once() -> None:
    """Extents without an offset and a length take no bytes of the file, so a small file could declare millions."""
    locations = b"".join(struct.pack(">HHH", number, 0, 65_535) for number in range(200))
    location_box = full_box(b"iloc", struct.pack(">BBH", 0, 0, 200) + locations)
    items = read_items(full_box(b"meta", location_box))
    assert sum(len(item.extents) for item in items.by_id.values()) <= 200


@pytest.mark.parametrize(
    ("box_type", "entry", "changed"),
    [(b"iloc", b"\0\1\0\0\0\1", b"\0\1\0\0\xff\xff"), (b"ipma", b"\0\0\0\1\0\1\2", b"\0\0\0\1\0\1\xff")],
)
def test_heic_entries_beyond_their_box_are_not_read(box_type: bytes, entry: bytes, changed: bytes) -> None:
    data = heif_file(picture())
    at = data.index(entry, data.index(box_type))
    with pytest.raises(ImageError, match=f"HEIF: the box {box_type.decode()} is truncated") as raised:
        decode_image(data[:at] + changed + data[at + len(entry) :])
    assert raised.value.error_class == "BrokenImage"


@pytest.mark.parametrize("kind", [b"av01", b"vvc1"])
def test_heif_whose_primary_image_has_another_codec(kind: bytes) -> None:
    """The other image of the file, which can be decoded, is not returned instead."""
    primary = Picture(load("colour")[0], (size(),), kind)
    for pictures, number in (((primary, picture("gray")), 1), ((picture("gray"), primary), 2)):
        with pytest.raises(ImageError, match="HEIF whose primary image is not coded in HEVC") as raised:
            decode_image(heif_file(*pictures, primary=number))
        assert raised.value.error_class == "UnsupportedFormat"


def test_heif_of_another_codec_is_unsupported() -> None:
    assert decode_error_class(heif_file(picture(), brand=b"avci")) == "UnsupportedFormat"
    unknown = heif_file(picture()).replace(b"ftypheic", b"ftypmif1").replace(b"mif1heic", b"mif1jpeg")
    assert decode_error_class(unknown) == "UnsupportedFormat"
    other = heif_file(Picture(load("colour")[0], (size(), load("colour")[1]), b"vvc1"))
    assert decode_error_class(other) == "UnsupportedFormat"
    assert decode_image(heif_file(picture(), brand=b"mif1")).format == "HEIC"
