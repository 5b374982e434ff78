"""Every combination that PNG allows, compared with the encoded samples; damaged PNGs."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagemill.pipeline.images.decode import decode_image
from tests.support.exact_writers import chunk, png_file
from tests.support.sample_images import LIMIT, decode_error_class, encode_as, noise, scene

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
KINDS = [(colour, bits) for colour, depths in DEPTHS.items() for bits in depths]
# Widths and heights around those of the interlacing passes, and a width of complete bytes.
SIZES = ((1, 1), (3, 5), (9, 2), (17, 16))
PNG_VARIANTS = list(itertools.product(KINDS, SIZES, (False, True), (False, True), (1 << 20, 7)))
FEW_OR_ALL = pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.chaos)])


def to_8_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    return np.round(samples * (255 / ((1 << bits) - 1))).astype(np.uint8)


def random_samples(size: tuple[int, int], colour: int, bits: int) -> np.ndarray:
    """Return (H,W,C) samples, of which some differ only in the lowest bit."""
    generator = np.random.default_rng(bits + colour)
    samples = generator.integers(0, 1 << bits, (*size[::-1], CHANNELS[colour]))
    samples[0, : size[0] // 2] = samples[0, 0] ^ (1 if colour != 3 else 0)
    return samples


@FEW_OR_ALL
def test_png_of_every_kind_is_decoded_exactly(step: int) -> None:
    """Colour types, depths, sizes, interlacing, transparency, palettes, numbers of chunks."""
    for (colour, bits), size, interlaced, transparent, idat_bytes in PNG_VARIANTS[::step]:
        samples = random_samples(size, colour, bits)
        chunks, alpha = [], None
        if colour == 3:
            palette = noise(1 << bits, 3)
            chunks.append(chunk(b"PLTE", palette.tobytes()))
            expected = palette[samples[..., 0]]
            if transparent:
                alphas = np.full(1 << bits, 255)
                alphas[: 1 << bits - 1] = np.arange(1 << bits - 1) * 2
                chunks.append(chunk(b"tRNS", alphas[: 1 << bits - 1].astype(np.uint8).tobytes()))
                alpha = alphas[samples[..., 0]]
        else:
            colours = samples[..., : 1 if colour in (0, 4) else 3]
            expected = np.broadcast_to(to_8_bits(colours, bits), (*samples.shape[:2], 3))
            if colour in (4, 6):
                alpha = to_8_bits(samples[..., -1], bits)
            elif transparent:
                key = colours[-1, -1]
                chunks.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
                alpha = np.where((colours == key).all(-1), 0, 255)
        data = png_file(samples, bits, colour, *chunks, interlaced=interlaced, idat_bytes=idat_bytes)
        decoded = decode_image(data, LIMIT)
        # Fully transparent pixels get colours of visible ones.
        expected_colours = slice(None) if alpha is None else alpha > 0
        case = f"colour type {colour}, {bits} bits, {size}, interlaced {interlaced}, transparent {transparent}"
        assert (decoded.rgb == expected)[expected_colours].all(), case
        assert (decoded.alpha is None) == (alpha is None), case
        assert alpha is None or (decoded.alpha == alpha).all(), case
        assert decoded.bit_depth == (1 if (colour, bits) == (0, 1) else max(8, bits)), case
        assert decoded.is_gray == (colour in (0, 4)), case
        assert (decoded.frames, decoded.icc) == (1, "none"), case


def test_png_transparent_colour_matches_at_full_depth() -> None:
    """Of two colours that are equal in 8 bits, only the declared one is transparent."""
    samples = np.array([[[256, 0, 0], [257, 0, 0], [258, 0, 0]]])
    data = png_file(samples, 16, 2, chunk(b"tRNS", struct.pack(">3H", 257, 0, 0)))
    np.testing.assert_array_equal(decode_image(data).alpha, [[255, 0, 255]])


def test_png_transparent_colour_ignores_unused_bits() -> None:
    data = png_file(np.array([[[0], [1], [2]]]), 2, 0, chunk(b"tRNS", struct.pack(">H", 0xFF01)))
    np.testing.assert_array_equal(decode_image(data).alpha, [[255, 0, 255]])


@pytest.mark.parametrize(
    ("colour", "content"), [(0, b"\0"), (0, bytes(6)), (2, bytes(2)), (6, bytes(6)), (3, b""), (3, bytes(9))]
)
def test_png_mismatched_transparency_is_ignored(colour: int, content: bytes) -> None:
    chunks = [chunk(b"PLTE", bytes(6))] if colour == 3 else []
    samples = np.zeros((2, 2, CHANNELS[colour]), int) + (255 if colour == 6 else 0)
    decoded = decode_image(png_file(samples, 8, colour, *chunks, chunk(b"tRNS", content)))
    assert decoded.alpha is None or decoded.alpha.min() == 255


def test_png_index_outside_palette_is_black() -> None:
    decoded = decode_image(png_file(np.array([[[0], [1], [200]]]), 8, 3, chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4]))))
    np.testing.assert_array_equal(decoded.rgb, [[[9, 8, 7], [6, 5, 4], [0, 0, 0]]])


WHOLE = png_file(noise(30, 40, 3).astype(int), 8, 2, idat_bytes=500)


@pytest.mark.parametrize(
    "end", [b"", b"\0", b"\0\0\0\0IE", WHOLE[-12:-1], WHOLE[-12:-4] + b"oops", b"\0\0\0\0IENX\xaeB`\x82", b"junk" * 9]
)
def test_png_with_damaged_end_chunk_is_intact(end: bytes) -> None:
    np.testing.assert_array_equal(decode_image(WHOLE[:-12] + end).rgb, noise(30, 40, 3))


def test_png_truncated_in_pixels_is_broken() -> None:
    for end in range(8, len(WHOLE) - 12, 37):
        assert decode_error_class(WHOLE[:end]) in ("BrokenImage", "UnknownFormat")
    # A file that is cut between two IDAT chunks has no damaged chunk.
    second = WHOLE.index(b"IDAT", WHOLE.index(b"IDAT") + 1) - 4
    assert decode_error_class(WHOLE[:second]) == "BrokenImage"
    assert decode_error_class(WHOLE[:second] + WHOLE[-12:]) == "BrokenImage"


def test_png_changed_pixel_byte_fails_checksum() -> None:
    """Uncompressed rows would otherwise be decoded without an error."""
    uncompressed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise(30, 40, 3)), 0)
    head, tail = WHOLE[:33], WHOLE[-12:]
    data = bytearray(head + chunk(b"IDAT", uncompressed) + tail)
    np.testing.assert_array_equal(decode_image(bytes(data)).rgb, noise(30, 40, 3))
    data[100] ^= 4
    assert decode_error_class(bytes(data)) == "BrokenImage"


def damage_chunk(name: bytes, content: bytes) -> bytes:
    damaged_chunk = bytearray(chunk(name, content))
    damaged_chunk[8] ^= 1
    return bytes(damaged_chunk)


def test_png_damaged_optional_chunk_is_skipped() -> None:
    samples = noise(3, 4, 1).astype(int)
    for name in (b"tEXt", b"tIME", b"pHYs", b"eXIf", b"zzZz"):
        np.testing.assert_array_equal(
            decode_image(png_file(samples, 8, 0, damage_chunk(name, bytes(9)))).rgb[..., :1], samples
        )
    for name in (b"gAMA", b"iCCP", b"cICP", b"cHRM", b"sRGB"):
        decoded = decode_image(png_file(samples, 8, 0, damage_chunk(name, bytes(4))))
        assert decoded.icc == "unreadable"
        np.testing.assert_array_equal(decoded.rgb[..., :1], samples)
    assert decode_error_class(png_file(samples, 8, 0, damage_chunk(b"tRNS", bytes(2)))) == "BrokenImage"
    assert decode_error_class(png_file(samples, 8, 3, damage_chunk(b"PLTE", bytes(768)))) == "BrokenImage"
    assert decode_error_class(png_file(samples, 8, 3)) == "BrokenImage"
    assert decode_error_class(png_file(samples, 8, 0, chunk(b"NEWx", b""))) == "UnsupportedFormat"


def test_png_of_apple_variant_is_unsupported() -> None:
    data = WHOLE[:8] + chunk(b"CgBI", bytes(4)) + WHOLE[8:]
    with pytest.raises(Exception, match="CgBI is not supported"):
        decode_image(data)
    assert decode_error_class(data) == "UnsupportedFormat"


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt"])
def test_png_large_text_is_dropped(name: bytes) -> None:
    """The workflow of an image generator can be megabytes long."""
    info, text = PngInfo(), "x" * 3_000_000
    if name == b"iTXt":
        info.add_itxt("workflow", text, zip=True)
    else:
        info.add_text("workflow", text, zip=name == b"zTXt")
    info.add_itxt("Title", "été")
    decoded = decode_image(encode_as(Image.fromarray(scene()), "PNG", pnginfo=info))
    np.testing.assert_array_equal(decoded.rgb, scene())
    assert decoded.metadata.text == {"Title": "été"}


def test_png_large_profile_is_dropped() -> None:
    decoded = decode_image(encode_as(Image.fromarray(scene()), "PNG", icc_profile=bytes(6_000_000)))
    np.testing.assert_array_equal(decoded.rgb, scene())
    assert decoded.icc == "unreadable"


def test_png_metadata_after_pixels_is_read() -> None:
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    exif = Image.Exif()
    exif[0x010E] = "what it shows"
    block = chunk(b"eXIf", exif.tobytes()[6:])
    plain_png = png_file(noise(3, 4, 3).astype(int), 8, 2)
    for data in (plain_png[:33] + text + block + plain_png[33:], plain_png[:-12] + text + block + plain_png[-12:]):
        decoded = decode_image(data)
        assert decoded.metadata.xmp is not None
        assert b"xmpmeta" in decoded.metadata.xmp
        assert decoded.metadata.exif is not None


@pytest.mark.parametrize("default_is_frame", [True, False])
def test_png_animation_decodes_default_image(default_is_frame: bool) -> None:
    frames = [Image.fromarray(noise(6, 8, 3) + np.uint8(50 * n)) for n in range(3)]
    data = encode_as(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=not default_is_frame)
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.rgb, np.asarray(frames[0]))
    assert decoded.frames == 3
    assert decoded.frames == Image.open(io.BytesIO(data)).n_frames
