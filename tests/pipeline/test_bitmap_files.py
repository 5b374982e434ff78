"""GIF, BMP and PNM in every combination, compared with the encoded samples."""

import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import choose_output_format
from tests.support.exact_writers import bmp_file, gif_file, gif_image, pack_samples
from tests.support.sample_images import decode_error_class, encode_as, noise, scene, visible_pixels

FEW_OR_ALL = pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.chaos)])
H, W = 9, 13


def random_indices(colours: int, size: tuple[int, int] = (W, H)) -> np.ndarray:
    samples = np.random.default_rng(colours).integers(0, colours, size[::-1])
    samples[0, 0] = colours - 1
    return samples


EVERY_GIF = list(
    itertools.product(
        (2, 3, 16, 256),
        # Size of the canvas, and position of the first image.
        (((W, H), (0, 0)), ((W + 7, H + 2), (4, 1)), ((0, 0), (0, 0)), ((5, 20), (3, 2)), ((W, H), (2, 0))),
        ("global", "local", "both"),
        (False, True),
        (None, 0, 1),
        (0, 2),
    )
)


@FEW_OR_ALL
def test_gif_of_every_kind_decodes_as_in_browsers(step: int) -> None:
    """The canvas outside the first image is transparent; a canvas that is too small grows."""
    for colours, (screen, position), tables, interlaced, transparent, following_count in EVERY_GIF[::step]:
        samples, palette, other_palette = random_indices(colours), noise(colours, 3), 255 - noise(colours, 3)
        local_palette = palette if tables != "global" else None
        image = gif_image(samples, position, local_palette, transparent, interlaced)
        later_frames = [gif_image(random_indices(2), (0, 0), other_palette, None, False)] * following_count
        shared = {"global": palette, "local": None, "both": other_palette}[tables]
        decoded = decode_image(gif_file(screen, shared, image, *later_frames, background=1))
        canvas = max(screen[0], position[0] + W), max(screen[1], position[1] + H)
        rgb, alpha = np.zeros((*canvas[::-1], 3), np.uint8), np.zeros(canvas[::-1], np.uint8)
        inside = slice(position[1], position[1] + H), slice(position[0], position[0] + W)
        rgb[inside], alpha[inside] = palette[samples], np.where(samples == transparent, 0, 255)
        case = f"{colours} colours, screen {screen}, position {position}, {tables}, {interlaced}, {transparent}"
        if alpha.min() == 255:
            assert decoded.alpha is None, case
        else:
            assert decoded.alpha is not None, case
            assert (decoded.alpha == alpha).all(), case
        assert (decoded.rgb[alpha > 0] == rgb[alpha > 0]).all(), case
        assert (decoded.frames, decoded.bit_depth) == (1 + following_count, 8), case


def test_gif_of_pillow_decodes_first_frame() -> None:
    for mode, count in itertools.product(("P", "L", "RGB", "1"), (1, 3)):
        frames = [Image.fromarray(scene(20, 30) + np.uint8(30 * n)).quantize(16).convert(mode) for n in range(count)]
        data = encode_as(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)
        decoded = decode_image(data)
        # The images have at most 256 colours, so Pillow stores them exactly.
        expected = np.asarray(frames[0].convert("RGB"))
        np.testing.assert_array_equal(decoded.rgb, expected)
        assert decoded.frames == count
        assert decoded.is_gray == bool((expected == expected[..., :1]).all()) or mode == "RGB"


def test_gif_of_gray_palette_keeps_transparency() -> None:
    """A gray GIF with a transparent colour was once rejected as broken."""
    gray_palette = np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 80, 3, 1)
    samples = random_indices(4)
    decoded = decode_image(gif_file((W, H), gray_palette, gif_image(samples, (0, 0), None, 2, False)))
    assert decoded.is_gray
    np.testing.assert_array_equal(decoded.alpha, np.where(samples == 2, 0, 255))
    np.testing.assert_array_equal(decoded.rgb[samples != 2], gray_palette[samples[samples != 2]])


def test_gif_truncated_in_first_image_is_broken() -> None:
    data = gif_file((W, H), noise(16, 3), gif_image(random_indices(16), (0, 0), None, None, False))
    for end in range(14, len(data) - 4, 3):
        assert decode_error_class(data[:end]) == "BrokenImage"
    # The first frame of a truncated animation is intact.
    image = gif_image(random_indices(16), (0, 0), None, None, False)
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
def test_bmp_bit_fields_are_scaled_to_8_bits(step: int) -> None:
    for bits, masks, header, top_down in EVERY_BIT_FIELD[::step]:
        words = np.random.default_rng(bits).integers(0, 1 << bits, (H, W)).astype(f"<u{bits // 8}")
        rows = [row.tobytes() for row in words]
        data = bmp_file(rows, (W, H), bits, header=header, compression=3, masks=masks, top_down=top_down)
        planes = []
        for mask in masks:
            shift = (mask & -mask).bit_length() - 1
            planes.append(np.round(((words & mask) >> shift) * (255 / (mask >> shift))).astype(np.uint8))
        decoded = decode_image(data)
        case = f"{bits} bits, {[hex(mask) for mask in masks]}, header {header}, top down {top_down}"
        assert (decoded.rgb == np.dstack(planes[:3]))[visible_pixels(decoded)].all(), case
        assert (decoded.alpha is None) == (len(masks) == 3), case
        assert decoded.alpha is None or (decoded.alpha == planes[3]).all(), case


EVERY_PALETTE = list(itertools.product((1, 2, 4, 8), (12, 16, 40, 64, 108, 124), (False, True), (1.0, 0.6)))


@FEW_OR_ALL
def test_bmp_palettes_are_decoded_exactly(step: int) -> None:
    """Windows and OS/2 headers, bottom-up and top-down, with fewer colours than the bits allow."""
    for bits, header, top_down, share in EVERY_PALETTE[::step]:
        if header in (12, 16) and (top_down or share < 1):
            continue
        colours = max(2, int(share * (1 << bits)))
        samples, palette = random_indices(colours), noise(colours, 3)
        data = bmp_file(pack_samples(samples, bits), (W, H), bits, header=header, palette=palette, top_down=top_down)
        decoded = decode_image(data)
        assert (decoded.rgb == palette[samples]).all(), (bits, header, top_down, share)
        assert (decoded.alpha, decoded.bit_depth, decoded.is_gray) == (None, 8, False)


@pytest.mark.parametrize("header", [12, 40, 64, 108, 124])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_bmp_uncompressed_is_decoded_exactly(header: int, bits: int) -> None:
    rgb = noise(H, W, 3)
    if bits == 16:
        five_bit_samples = np.round(rgb / 255 * 31).astype("<u2")
        rows = [
            row.tobytes()
            for row in (five_bit_samples[..., 0] << 10 | five_bit_samples[..., 1] << 5 | five_bit_samples[..., 2])
        ]
        rgb = np.round(five_bit_samples * (255 / 31)).astype(np.uint8)
    else:
        rows = [row.tobytes() for row in np.dstack([rgb[..., ::-1], noise(H, W)])[..., : bits // 8]]
    if header in (12, 64) and bits != 24:
        return
    decoded = decode_image(bmp_file(rows, (W, H), bits, header=header))
    np.testing.assert_array_equal(decoded.rgb, rgb)
    # The fourth byte of an uncompressed 32-bit BMP is not alpha.
    assert decoded.alpha is None


def random_runs(samples: np.ndarray, bits: int, seed: int) -> tuple[bytes, np.ndarray]:
    """Return RLE of random runs from the bottom row up, and the samples (H,W), -1 if not drawn."""
    choose, code = np.random.default_rng(seed), b""
    drawn_samples = np.full(samples.shape, -1)
    y = 0
    while y < len(samples):
        row, x = samples[::-1][y], 0
        while x < len(row):
            remaining_count, kind = len(row) - x, choose.integers(0, 10)
            if kind < 5:
                count = int(choose.integers(1, remaining_count + 1))
                high_index, low_index = int(row[x]), int(row[min(x + 1, len(row) - 1)])
                code += bytes([count, high_index << 4 | low_index if bits == 4 else high_index])
                pattern = np.resize([high_index, low_index] if bits == 4 else [high_index], count)
            elif kind < 8 and remaining_count >= 3:
                count = int(choose.integers(3, remaining_count + 1))
                body = pack_samples(row[None, x : x + count], bits)[0]
                code += bytes([0, count]) + body + bytes(len(body) % 2)
                pattern = row[x : x + count]
            elif kind == 8 and y + 1 < len(samples):
                skip_x, skip_y = int(choose.integers(0, remaining_count)), int(choose.integers(0, 2))
                code += bytes([0, 2, skip_x, skip_y])
                x, y = x + skip_x, y + skip_y
                row = samples[::-1][y]
                continue
            else:
                break
            drawn_samples[::-1][y, x : x + count] = pattern
            x += count
        code, y = code + b"\0\0", y + 1
    return code + b"\0\1", drawn_samples


@pytest.mark.parametrize("count", [40, pytest.param(2_000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_pixels_skipped_by_rle_are_transparent(bits: int, count: int) -> None:
    for seed in range(count):
        palette, samples = noise(1 << bits, 3), random_indices(1 << bits)
        code, drawn_samples = random_runs(samples, bits, seed)
        decoded = decode_image(bmp_file([code], (W, H), bits, compression=2 if bits == 4 else 1, palette=palette))
        is_visible = drawn_samples >= 0
        np.testing.assert_array_equal(decoded.rgb[is_visible], palette[drawn_samples[is_visible]])
        if is_visible.all():
            assert decoded.alpha is None
        elif is_visible.any():
            np.testing.assert_array_equal(decoded.alpha > 0, is_visible)


def test_bmp_alpha_of_zeros_is_ignored() -> None:
    """Programs without alpha leave zeros; nobody stores an invisible image."""
    rgba = np.dstack([noise(H, W, 3), np.zeros((H, W), np.uint8)])
    masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    decoded = decode_image(bmp_file([row.tobytes() for row in rgba], (W, H), 32, header=124, compression=3, masks=masks))
    np.testing.assert_array_equal(decoded.rgb, rgba[..., :3])
    assert decoded.alpha is None


def test_bmp_unsupported_compression_is_named() -> None:
    for compression, words in ((4, "contains a JPEG"), (5, "contains a PNG"), (9, "compression 9")):
        with pytest.raises(Exception, match=words):
            decode_image(bmp_file([bytes(90)], (W, H), 24, compression=compression))
        assert decode_error_class(bmp_file([bytes(90)], (W, H), 24, compression=compression)) == "UnsupportedFormat"
    with pytest.raises(Exception, match="Huffman"):
        decode_image(bmp_file([bytes(90)], (W, H), 1, header=64, compression=3))


def test_bmp_truncated_is_broken() -> None:
    for data in (
        encode_as(Image.fromarray(scene()), "BMP"),
        bmp_file([b"\4\1\0\0" * 3], (4, 9), 8, compression=1, palette=noise(9, 3)),
    ):
        for end in (30, 60, len(data) // 2, len(data) - 5):
            assert decode_error_class(data[:end]) == "BrokenImage"


def test_output_of_transparent_bmp_is_png() -> None:
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
def test_pgm_and_ppm_are_scaled_to_8_bits(step: int) -> None:
    for sample_max, channels, is_plain, comment in EVERY_PNM[::step]:
        samples = np.random.default_rng(sample_max).integers(0, sample_max + 1, (H, W, channels))
        magic = {(1, True): b"P2", (3, True): b"P3", (1, False): b"P5", (3, False): b"P6"}[channels, is_plain]
        head = magic + b"\n" + comment + b"%d %d\n" % (W, H) + comment + b"%d\n" % sample_max
        if is_plain:
            body = comment.join(b" ".join(b"%d" % value for value in row) + b"\n" for row in samples.reshape(H, -1))
        else:
            body = samples.astype(">u2" if sample_max > 255 else "u1").tobytes()
        decoded = decode_image(head + body)
        # Like netpbm, round halves up.
        expected = (samples * 510 + sample_max) // (2 * sample_max)
        assert (decoded.rgb == expected).all(), (sample_max, channels, is_plain)
        assert decoded.is_gray == (channels == 1)
        assert decoded.bit_depth == (1 if (sample_max, channels) == (1, 1) else max(8, sample_max.bit_length()))


def test_pbm_set_bit_is_black() -> None:
    for width in (1, 7, 8, 9, 16):
        bits = noise(H, width) > 127
        digits = [b"1" if bit else b"0" for bit in bits.ravel()]
        for body in (b"".join(digits), b" ".join(digits), b"\n".join(digits) + b"\n"):
            np.testing.assert_array_equal(
                decode_image(b"P1 %d %d\n" % (width, H) + body).rgb[..., 0], np.where(bits, 0, 255)
            )
        raw = b"P4 #\n%d %d\n" % (width, H) + b"".join(pack_samples(bits, 1))
        np.testing.assert_array_equal(decode_image(raw).rgb[..., 0], np.where(bits, 0, 255))
        assert decode_image(raw).bit_depth == 1


@pytest.mark.parametrize(
    ("kind", "depth", "sample_max"),
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
def test_pam_of_every_kind_is_decoded_exactly(kind: bytes, depth: int, sample_max: int) -> None:
    samples = np.random.default_rng(0).integers(0, sample_max + 1, (H, W, depth))
    head = b"P7\n# made by hand\nWIDTH %d\nHEIGHT %d\nDEPTH %d\nMAXVAL %d\n" % (W, H, depth, sample_max)
    data = (
        head
        + (b"TUPLTYPE " + kind + b"\n" if kind else b"")
        + b"ENDHDR\n"
        + samples.astype(">u2" if sample_max > 255 else "u1").tobytes()
    )
    decoded, expected = decode_image(data), np.round(samples * (255 / sample_max)).astype(np.uint8)
    colours = expected[..., : 3 if depth > 2 else 1]
    assert (decoded.rgb == colours)[visible_pixels(decoded)].all()
    if depth in (2, 4):
        np.testing.assert_array_equal(decoded.alpha, expected[..., -1])
    else:
        assert decoded.alpha is None


def test_pnm_errors_are_named() -> None:
    assert decode_error_class(b"PF\n1 1\n-1.0\n" + bytes(12)) == "UnsupportedMode"
    assert decode_error_class(b"Pf\n1 1\n-1.0\n" + bytes(4)) == "UnsupportedMode"
    assert (
        decode_error_class(b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 5\nMAXVAL 255\nTUPLTYPE STOKES\nENDHDR\n12345")
        == "UnsupportedFormat"
    )
    for data in (
        b"P5 2 2 255\nabc",
        b"P2 2 2 255\n1 2 3",
        b"P5 1 1 100\n\xff",
        b"P2 1 1 9\n10",
        b"P2 1 1 9\nx",
        b"P5 0 1 9\n",
        b"P6",
    ):
        assert decode_error_class(data) == "BrokenImage"


def test_pnm_images_are_counted() -> None:
    two_samples = b"P5 2 1 255\nab"
    assert [decode_image(two_samples * count).frames for count in (1, 2, 5)] == [1, 2, 5]
    assert decode_image(two_samples + b"P6\n1 1\n65535\n" + bytes(6) + two_samples).frames == 3
    assert decode_image(two_samples + b"Photo").frames == 1


def test_pnm_header_ends_after_one_blank() -> None:
    """Raw samples after the blank may look like blanks themselves."""
    data = b"P5\n#" + b"c" * 5_000 + b"\n2 1 255\n" + b"\n "
    np.testing.assert_array_equal(decode_image(data).rgb[0, :, 0], [10, 32])
    assert struct.unpack("2B", b"\n ") == (10, 32)
