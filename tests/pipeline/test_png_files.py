"""PNG in every combination of its standard, compared with the samples that were written; and PNGs that are damaged."""

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
from tests.support.sample_images import LIMIT, error_class, noise, saved, scene

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
KINDS = [(colour, bits) for colour, depths in DEPTHS.items() for bits in depths]
# Widths and heights around those of interlacing's passes, and one of whole bytes.
SIZES = ((1, 1), (3, 5), (9, 2), (17, 16))
EVERY = list(itertools.product(KINDS, SIZES, (False, True), (False, True), (1 << 20, 7)))
FEW_OR_ALL = pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.chaos)])


def to_8_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    return np.round(samples * (255 / ((1 << bits) - 1))).astype(np.uint8)


def random_samples(size: tuple[int, int], colour: int, bits: int) -> np.ndarray:
    """(H,W,C), of which some differ in the lowest bit alone."""
    generator = np.random.default_rng(bits + colour)
    samples = generator.integers(0, 1 << bits, (*size[::-1], CHANNELS[colour]))
    samples[0, : size[0] // 2] = samples[0, 0] ^ (1 if colour != 3 else 0)
    return samples


@FEW_OR_ALL
def test_every_kind_of_png_is_read_as_written(step: int) -> None:
    """Colour type, depth, size, interlacing, transparency by a colour or a palette, and pixels in one chunk or in many."""
    for (colour, bits), size, interlaced, transparent, idat_bytes in EVERY[::step]:
        samples = random_samples(size, colour, bits)
        before, alpha = [], None
        if colour == 3:
            palette = noise(1 << bits, 3)
            before.append(chunk(b"PLTE", palette.tobytes()))
            expected = palette[samples[..., 0]]
            if transparent:
                alphas = np.full(1 << bits, 255)
                alphas[: 1 << bits - 1] = np.arange(1 << bits - 1) * 2
                before.append(chunk(b"tRNS", alphas[: 1 << bits - 1].astype(np.uint8).tobytes()))
                alpha = alphas[samples[..., 0]]
        else:
            colours = samples[..., : 1 if colour in (0, 4) else 3]
            expected = np.broadcast_to(to_8_bits(colours, bits), (*samples.shape[:2], 3))
            if colour in (4, 6):
                alpha = to_8_bits(samples[..., -1], bits)
            elif transparent:
                key = colours[-1, -1]
                before.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
                alpha = np.where((colours == key).all(-1), 0, 255)
        data = png_file(samples, bits, colour, *before, interlaced=interlaced, idat_bytes=idat_bytes)
        picture = decode_image(data, LIMIT)
        # Hidden pixels have colours of visible ones.
        shown = slice(None) if alpha is None else alpha > 0
        case = f"colour type {colour}, {bits} bits, {size}, interlaced {interlaced}, transparent {transparent}"
        assert (picture.rgb == expected)[shown].all(), case
        assert (picture.alpha is None) == (alpha is None), case
        assert alpha is None or (picture.alpha == alpha).all(), case
        assert picture.bit_depth == (1 if (colour, bits) == (0, 1) else max(8, bits)), case
        assert picture.is_gray == (colour in (0, 4)), case
        assert (picture.frames, picture.icc) == (1, "none"), case


def test_a_transparent_colour_is_compared_at_full_depth() -> None:
    """Two colours that are one at 8 bits: only the one that the file names is transparent."""
    samples = np.array([[[256, 0, 0], [257, 0, 0], [258, 0, 0]]])
    data = png_file(samples, 16, 2, chunk(b"tRNS", struct.pack(">3H", 257, 0, 0)))
    np.testing.assert_array_equal(decode_image(data).alpha, [[255, 0, 255]])


def test_unused_bits_of_a_transparent_colour_do_not_count() -> None:
    data = png_file(np.array([[[0], [1], [2]]]), 2, 0, chunk(b"tRNS", struct.pack(">H", 0xFF01)))
    np.testing.assert_array_equal(decode_image(data).alpha, [[255, 0, 255]])


@pytest.mark.parametrize(
    ("colour", "content"), [(0, b"\0"), (0, bytes(6)), (2, bytes(2)), (6, bytes(6)), (3, b""), (3, bytes(9))]
)
def test_transparency_that_does_not_fit_the_pixels_is_left_out(colour: int, content: bytes) -> None:
    before = [chunk(b"PLTE", bytes(6))] if colour == 3 else []
    samples = np.zeros((2, 2, CHANNELS[colour]), int) + (255 if colour == 6 else 0)
    picture = decode_image(png_file(samples, 8, colour, *before, chunk(b"tRNS", content)))
    assert picture.alpha is None or picture.alpha.min() == 255


def test_a_colour_that_the_palette_lacks_is_black() -> None:
    picture = decode_image(png_file(np.array([[[0], [1], [200]]]), 8, 3, chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4]))))
    np.testing.assert_array_equal(picture.rgb, [[[9, 8, 7], [6, 5, 4], [0, 0, 0]]])


WHOLE = png_file(noise(30, 40, 3).astype(int), 8, 2, idat_bytes=500)


@pytest.mark.parametrize(
    "end", [b"", b"\0", b"\0\0\0\0IE", WHOLE[-12:-1], WHOLE[-12:-4] + b"oops", b"\0\0\0\0IENX\xaeB`\x82", b"junk" * 9]
)
def test_a_png_whose_end_alone_is_damaged_is_whole(end: bytes) -> None:
    np.testing.assert_array_equal(decode_image(WHOLE[:-12] + end).rgb, noise(30, 40, 3))


def test_a_png_cut_before_the_end_of_its_pixels_is_broken() -> None:
    for end in range(8, len(WHOLE) - 12, 37):
        assert error_class(WHOLE[:end]) in ("BrokenImage", "UnknownFormat")
    # Between two chunks of pixels nothing looks cut.
    second = WHOLE.index(b"IDAT", WHOLE.index(b"IDAT") + 1) - 4
    assert error_class(WHOLE[:second]) == "BrokenImage"
    assert error_class(WHOLE[:second] + WHOLE[-12:]) == "BrokenImage"


def test_a_changed_byte_of_pixels_is_found_by_its_checksum() -> None:
    """Rows that are not packed would otherwise be decoded without an error."""
    stored = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise(30, 40, 3)), 0)
    head, tail = WHOLE[:33], WHOLE[-12:]
    data = bytearray(head + chunk(b"IDAT", stored) + tail)
    np.testing.assert_array_equal(decode_image(bytes(data)).rgb, noise(30, 40, 3))
    data[100] ^= 4
    assert error_class(bytes(data)) == "BrokenImage"


def damaged(name: bytes, content: bytes) -> bytes:
    whole = bytearray(chunk(name, content))
    whole[8] ^= 1
    return bytes(whole)


def test_a_damaged_chunk_is_left_out_unless_the_picture_needs_it() -> None:
    samples = noise(3, 4, 1).astype(int)
    for name in (b"tEXt", b"tIME", b"pHYs", b"eXIf", b"zzZz"):
        np.testing.assert_array_equal(decode_image(png_file(samples, 8, 0, damaged(name, bytes(9)))).rgb[..., :1], samples)
    for name in (b"gAMA", b"iCCP", b"cICP", b"cHRM", b"sRGB"):
        picture = decode_image(png_file(samples, 8, 0, damaged(name, bytes(4))))
        assert picture.icc == "unreadable"
        np.testing.assert_array_equal(picture.rgb[..., :1], samples)
    assert error_class(png_file(samples, 8, 0, damaged(b"tRNS", bytes(2)))) == "BrokenImage"
    assert error_class(png_file(samples, 8, 3, damaged(b"PLTE", bytes(768)))) == "BrokenImage"
    assert error_class(png_file(samples, 8, 3)) == "BrokenImage"
    assert error_class(png_file(samples, 8, 0, chunk(b"NEWx", b""))) == "UnsupportedFormat"


def test_apples_variant_of_png_is_named() -> None:
    data = WHOLE[:8] + chunk(b"CgBI", bytes(4)) + WHOLE[8:]
    with pytest.raises(Exception, match="CgBI is not supported"):
        decode_image(data)
    assert error_class(data) == "UnsupportedFormat"


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_large_text_is_dropped_and_the_picture_read(name: bytes) -> None:
    """The workflow of an image generator may have megabytes."""
    info, text = PngInfo(), "x" * 3_000_000
    if name == b"iTXt":
        info.add_itxt("workflow", text, zip=True)
    else:
        info.add_text("workflow", text, zip=name == b"zTXt")
    info.add_itxt("Title", "été")
    picture = decode_image(saved(Image.fromarray(scene()), "PNG", pnginfo=info))
    np.testing.assert_array_equal(picture.rgb, scene())
    assert picture.metadata.text == {"Title": "été"}


def test_a_large_profile_is_dropped_and_the_picture_read() -> None:
    picture = decode_image(saved(Image.fromarray(scene()), "PNG", icc_profile=bytes(6_000_000)))
    np.testing.assert_array_equal(picture.rgb, scene())
    assert picture.icc == "unreadable"


def test_xmp_and_exif_are_found_before_and_behind_the_pixels() -> None:
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    exif = Image.Exif()
    exif[0x010E] = "what it shows"
    block = chunk(b"eXIf", exif.tobytes()[6:])
    plain = png_file(noise(3, 4, 3).astype(int), 8, 2)
    for data in (plain[:33] + text + block + plain[33:], plain[:-12] + text + block + plain[-12:]):
        picture = decode_image(data)
        assert picture.metadata.xmp is not None
        assert b"xmpmeta" in picture.metadata.xmp
        assert picture.metadata.exif is not None


@pytest.mark.parametrize("default_is_frame", [True, False])
def test_an_animated_png_is_its_default_picture(default_is_frame: bool) -> None:
    frames = [Image.fromarray(noise(6, 8, 3) + np.uint8(50 * n)) for n in range(3)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=not default_is_frame)
    picture = decode_image(data)
    np.testing.assert_array_equal(picture.rgb, np.asarray(frames[0]))
    assert picture.frames == 3
    assert picture.frames == Image.open(io.BytesIO(data)).n_frames
