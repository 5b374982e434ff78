"""GIF, BMP and PNM in every combination, compared with the samples that were written."""

import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import choose_output_format
from tests.support.exact_writers import bmp_file, gif_file, gif_image, packed
from tests.support.sample_images import error_class, noise, saved, scene, shown

FEW_OR_ALL = pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.chaos)])
H, W = 9, 13


def indices(colours: int, size: tuple[int, int] = (W, H)) -> np.ndarray:
    samples = np.random.default_rng(colours).integers(0, colours, size[::-1])
    samples[0, 0] = colours - 1
    return samples


EVERY_GIF = list(
    itertools.product(
        (2, 3, 16, 256),
        # Screen, and place of the first image.
        (((W, H), (0, 0)), ((W + 7, H + 2), (4, 1)), ((0, 0), (0, 0)), ((5, 20), (3, 2)), ((W, H), (2, 0))),
        ("global", "local", "both"),
        (False, True),
        (None, 0, 1),
        (0, 2),
    )
)


@FEW_OR_ALL
def test_every_kind_of_gif_is_shown_as_browsers_do(step: int) -> None:
    """Nothing is drawn outside the first image, and a canvas smaller than the image grows."""
    for colours, (screen, place), tables, interlaced, transparent, more in EVERY_GIF[::step]:
        samples, palette, other = indices(colours), noise(colours, 3), 255 - noise(colours, 3)
        own = palette if tables != "global" else None
        image = gif_image(samples, place, own, transparent, interlaced)
        following = [gif_image(indices(2), (0, 0), other, None, False)] * more
        shared = {"global": palette, "local": None, "both": other}[tables]
        picture = decode_image(gif_file(screen, shared, image, *following, background=1))
        canvas = max(screen[0], place[0] + W), max(screen[1], place[1] + H)
        rgb, alpha = np.zeros((*canvas[::-1], 3), np.uint8), np.zeros(canvas[::-1], np.uint8)
        inside = slice(place[1], place[1] + H), slice(place[0], place[0] + W)
        rgb[inside], alpha[inside] = palette[samples], np.where(samples == transparent, 0, 255)
        case = f"{colours} colours, screen {screen}, place {place}, {tables}, {interlaced}, {transparent}"
        if alpha.min() == 255:
            assert picture.alpha is None, case
        else:
            assert picture.alpha is not None, case
            assert (picture.alpha == alpha).all(), case
        assert (picture.rgb[alpha > 0] == rgb[alpha > 0]).all(), case
        assert (picture.frames, picture.bit_depth) == (1 + more, 8), case


def test_a_gif_of_pillow_with_any_frames_shows_its_first() -> None:
    for mode, count in itertools.product(("P", "L", "RGB", "1"), (1, 3)):
        frames = [Image.fromarray(scene(20, 30) + np.uint8(30 * n)).quantize(16).convert(mode) for n in range(count)]
        data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)
        picture = decode_image(data)
        # Pillow writes at most 256 colours, which these have.
        expected = np.asarray(frames[0].convert("RGB"))
        np.testing.assert_array_equal(picture.rgb, expected)
        assert picture.frames == count
        assert picture.is_gray == bool((expected == expected[..., :1]).all()) or mode == "RGB"


def test_a_gif_that_is_cut_in_its_first_image_is_broken() -> None:
    data = gif_file((W, H), noise(16, 3), gif_image(indices(16), (0, 0), None, None, False))
    for end in range(14, len(data) - 4, 3):
        assert error_class(data[:end]) == "BrokenImage"
    # Of an animation that was cut the first picture is whole.
    image = gif_image(indices(16), (0, 0), None, None, False)
    assert decode_image(gif_file((W, H), noise(16, 3), image, image)[:-30]).frames == 2


MASKS = {
    16: ((0xF800, 0x07E0, 0x001F), (0x7C00, 0x03E0, 0x001F), (0x0F00, 0x00F0, 0x000F, 0xF000), (0x00E0, 0x001C, 0x0003)),
    32: (
        (0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0x3FF00000, 0x000FFC00, 0x000003FF),
        (0x000003FF, 0x000FFC00, 0x3FF00000, 0xC0000000),
        (0xF8000000, 0x00001F00, 0x000000FF),
    ),
}
EVERY_BIT_FIELD = [
    (bits, masks, header, top_down)
    for bits, kinds in MASKS.items()
    for masks, header, top_down in itertools.product(kinds, (40, 52, 56, 108, 124), (False, True))
    if len(masks) == 3 or header >= 56
]


@FEW_OR_ALL
def test_every_bit_field_of_a_bmp_is_scaled_to_8_bits(step: int) -> None:
    for bits, masks, header, top_down in EVERY_BIT_FIELD[::step]:
        words = np.random.default_rng(bits).integers(0, 1 << bits, (H, W)).astype(f"<u{bits // 8}")
        rows = [row.tobytes() for row in words]
        data = bmp_file(rows, (W, H), bits, header=header, compression=3, masks=masks, top_down=top_down)
        planes = []
        for mask in masks:
            shift = (mask & -mask).bit_length() - 1
            planes.append(np.round(((words & mask) >> shift) * (255 / (mask >> shift))).astype(np.uint8))
        picture = decode_image(data)
        case = f"{bits} bits, {[hex(mask) for mask in masks]}, header {header}, top down {top_down}"
        assert (picture.rgb == np.dstack(planes[:3]))[shown(picture)].all(), case
        assert (picture.alpha is None) == (len(masks) == 3), case
        assert picture.alpha is None or (picture.alpha == planes[3]).all(), case


EVERY_PALETTE = list(itertools.product((1, 2, 4, 8), (12, 16, 40, 64, 108, 124), (False, True), (1.0, 0.6)))


@FEW_OR_ALL
def test_every_palette_of_a_bmp_is_read_as_written(step: int) -> None:
    """Windows and OS/2 headers, from bottom or top, with fewer colours than the bits allow."""
    for bits, header, top_down, share in EVERY_PALETTE[::step]:
        if header in (12, 16) and (top_down or share < 1):
            continue
        colours = max(2, int(share * (1 << bits)))
        samples, palette = indices(colours), noise(colours, 3)
        data = bmp_file(packed(samples, bits), (W, H), bits, header=header, palette=palette, top_down=top_down)
        picture = decode_image(data)
        assert (picture.rgb == palette[samples]).all(), (bits, header, top_down, share)
        assert (picture.alpha, picture.bit_depth, picture.is_gray) == (None, 8, False)


@pytest.mark.parametrize("header", [12, 40, 64, 108, 124])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_plain_bmp_is_read_as_written(header: int, bits: int) -> None:
    rgb = noise(H, W, 3)
    if bits == 16:
        five = np.round(rgb / 255 * 31).astype("<u2")
        rows = [row.tobytes() for row in (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2])]
        rgb = np.round(five * (255 / 31)).astype(np.uint8)
    else:
        rows = [row.tobytes() for row in np.dstack([rgb[..., ::-1], noise(H, W)])[..., : bits // 8]]
    if header in (12, 64) and bits != 24:
        return
    picture = decode_image(bmp_file(rows, (W, H), bits, header=header))
    np.testing.assert_array_equal(picture.rgb, rgb)
    # The fourth byte of a plain BMP is not transparency.
    assert picture.alpha is None


def run_lengths(samples: np.ndarray, bits: int, seed: int) -> tuple[bytes, np.ndarray]:
    """(RLE of random kinds of runs, what they draw (H,W)), from the bottom row up; -1 where nothing is drawn."""
    choose, code = np.random.default_rng(seed), b""
    drawn = np.full(samples.shape, -1)
    y = 0
    while y < len(samples):
        row, x = samples[::-1][y], 0
        while x < len(row):
            left, kind = len(row) - x, choose.integers(0, 10)
            if kind < 5:
                count = int(choose.integers(1, left + 1))
                high, low = int(row[x]), int(row[min(x + 1, len(row) - 1)])
                code += bytes([count, high << 4 | low if bits == 4 else high])
                pattern = np.resize([high, low] if bits == 4 else [high], count)
            elif kind < 8 and left >= 3:
                count = int(choose.integers(3, left + 1))
                body = packed(row[None, x : x + count], bits)[0]
                code += bytes([0, count]) + body + bytes(len(body) % 2)
                pattern = row[x : x + count]
            elif kind == 8 and y + 1 < len(samples):
                right, up = int(choose.integers(0, left)), int(choose.integers(0, 2))
                code += bytes([0, 2, right, up])
                x, y = x + right, y + up
                row = samples[::-1][y]
                continue
            else:
                break
            drawn[::-1][y, x : x + count] = pattern
            x += count
        code, y = code + b"\0\0", y + 1
    return code + b"\0\1", drawn


@pytest.mark.parametrize("count", [40, pytest.param(2_000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("bits", [4, 8])
def test_runs_of_a_bmp_are_drawn_and_the_rest_is_transparent(bits: int, count: int) -> None:
    for seed in range(count):
        palette, samples = noise(1 << bits, 3), indices(1 << bits)
        code, drawn = run_lengths(samples, bits, seed)
        picture = decode_image(bmp_file([code], (W, H), bits, compression=2 if bits == 4 else 1, palette=palette))
        visible = drawn >= 0
        np.testing.assert_array_equal(picture.rgb[visible], palette[drawn[visible]])
        if visible.all():
            assert picture.alpha is None
        elif visible.any():
            np.testing.assert_array_equal(picture.alpha > 0, visible)


def test_alpha_of_zeros_is_no_alpha() -> None:
    """Programs that know no alpha leave zeros; nobody stores a picture that cannot be seen."""
    rgba = np.dstack([noise(H, W, 3), np.zeros((H, W), np.uint8)])
    masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    picture = decode_image(bmp_file([row.tobytes() for row in rgba], (W, H), 32, header=124, compression=3, masks=masks))
    np.testing.assert_array_equal(picture.rgb, rgba[..., :3])
    assert picture.alpha is None


def test_what_a_bmp_holds_that_is_not_read_is_named() -> None:
    for compression, words in ((4, "contains a JPEG"), (5, "contains a PNG"), (9, "compression 9")):
        with pytest.raises(Exception, match=words):
            decode_image(bmp_file([bytes(90)], (W, H), 24, compression=compression))
        assert error_class(bmp_file([bytes(90)], (W, H), 24, compression=compression)) == "UnsupportedFormat"
    with pytest.raises(Exception, match="Huffman"):
        decode_image(bmp_file([bytes(90)], (W, H), 1, header=64, compression=3))


def test_a_bmp_that_is_cut_is_broken() -> None:
    for data in (
        saved(Image.fromarray(scene()), "BMP"),
        bmp_file([b"\4\1\0\0" * 3], (4, 9), 8, compression=1, palette=noise(9, 3)),
    ):
        for end in (30, 60, len(data) // 2, len(data) - 5):
            assert error_class(data[:end]) == "BrokenImage"


def test_transparency_that_bmp_cannot_hold_goes_into_png() -> None:
    assert [choose_output_format(name, has_alpha=True) for name in ("BMP", "PPM", "TIFF", "WEBP")] == [
        "PNG",
        "PNG",
        "TIFF",
        "WEBP",
    ]
    assert [choose_output_format(name) for name in ("BMP", "PPM")] == ["BMP", "PPM"]


EVERY_PNM = list(
    itertools.product((1, 3, 15, 100, 255, 256, 1023, 4095, 65535), (1, 3), (True, False), (b"", b"# by hand\n"))
)


@FEW_OR_ALL
def test_every_graymap_and_pixmap_is_scaled_to_8_bits(step: int) -> None:
    for most, channels, plain, comment in EVERY_PNM[::step]:
        samples = np.random.default_rng(most).integers(0, most + 1, (H, W, channels))
        magic = {(1, True): b"P2", (3, True): b"P3", (1, False): b"P5", (3, False): b"P6"}[channels, plain]
        head = magic + b"\n" + comment + b"%d %d\n" % (W, H) + comment + b"%d\n" % most
        if plain:
            body = comment.join(b" ".join(b"%d" % value for value in row) + b"\n" for row in samples.reshape(H, -1))
        else:
            body = samples.astype(">u2" if most > 255 else "u1").tobytes()
        picture = decode_image(head + body)
        # Halves are rounded up, as netpbm does.
        expected = (samples * 510 + most) // (2 * most)
        assert (picture.rgb == expected).all(), (most, channels, plain)
        assert picture.is_gray == (channels == 1)
        assert picture.bit_depth == (1 if (most, channels) == (1, 1) else max(8, most.bit_length()))


def test_every_bitmap_is_black_where_a_bit_is_set() -> None:
    for width in (1, 7, 8, 9, 16):
        bits = noise(H, width) > 127
        digits = [b"1" if bit else b"0" for bit in bits.ravel()]
        for body in (b"".join(digits), b" ".join(digits), b"\n".join(digits) + b"\n"):
            np.testing.assert_array_equal(
                decode_image(b"P1 %d %d\n" % (width, H) + body).rgb[..., 0], np.where(bits, 0, 255)
            )
        raw = b"P4 #\n%d %d\n" % (width, H) + b"".join(packed(bits, 1))
        np.testing.assert_array_equal(decode_image(raw).rgb[..., 0], np.where(bits, 0, 255))
        assert decode_image(raw).bit_depth == 1


@pytest.mark.parametrize(
    ("kind", "depth", "most"),
    [
        (b"BLACKANDWHITE", 1, 1),
        (b"GRAYSCALE", 1, 255),
        (b"GRAYSCALE", 1, 1023),
        (b"RGB", 3, 255),
        (b"BLACKANDWHITE_ALPHA", 2, 1),
        (b"GRAYSCALE_ALPHA", 2, 255),
        (b"RGB_ALPHA", 4, 255),
        (b"RGB_ALPHA", 4, 65535),
        (b"", 3, 255),
    ],
)
def test_every_kind_of_pam_is_read_as_written(kind: bytes, depth: int, most: int) -> None:
    samples = np.random.default_rng(0).integers(0, most + 1, (H, W, depth))
    head = b"P7\n# made by hand\nWIDTH %d\nHEIGHT %d\nDEPTH %d\nMAXVAL %d\n" % (W, H, depth, most)
    data = (
        head
        + (b"TUPLTYPE " + kind + b"\n" if kind else b"")
        + b"ENDHDR\n"
        + samples.astype(">u2" if most > 255 else "u1").tobytes()
    )
    picture, expected = decode_image(data), np.round(samples * (255 / most)).astype(np.uint8)
    colours = expected[..., : 3 if depth > 2 else 1]
    assert (picture.rgb == colours)[shown(picture)].all()
    if depth in (2, 4):
        np.testing.assert_array_equal(picture.alpha, expected[..., -1])
    else:
        assert picture.alpha is None


def test_pnm_names_what_it_cannot_read() -> None:
    assert error_class(b"PF\n1 1\n-1.0\n" + bytes(12)) == "UnsupportedMode"
    assert error_class(b"Pf\n1 1\n-1.0\n" + bytes(4)) == "UnsupportedMode"
    assert error_class(b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 5\nMAXVAL 255\nTUPLTYPE STOKES\nENDHDR\n12345") == "UnsupportedFormat"
    for data in (
        b"P5 2 2 255\nabc",
        b"P2 2 2 255\n1 2 3",
        b"P5 1 1 100\n\xff",
        b"P2 1 1 9\n10",
        b"P2 1 1 9\nx",
        b"P5 0 1 9\n",
        b"P6",
    ):
        assert error_class(data) == "BrokenImage"


def test_images_of_one_pnm_file_are_counted() -> None:
    one = b"P5 2 1 255\nab"
    assert [decode_image(one * count).frames for count in (1, 2, 5)] == [1, 2, 5]
    assert decode_image(one + b"P6\n1 1\n65535\n" + bytes(6) + one).frames == 3
    assert decode_image(one + b"Photo").frames == 1


def test_a_large_comment_and_header_end_as_the_standard_says() -> None:
    """Exactly one blank separates the header from raw samples, which may look like blanks themselves."""
    data = b"P5\n#" + b"c" * 5_000 + b"\n2 1 255\n" + b"\n "
    np.testing.assert_array_equal(decode_image(data).rgb[0, :, 0], [10, 32])
    assert struct.unpack("2B", b"\n ") == (10, 32)
