import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from models.metrics import psnr_db
from pipeline.images.headers import webp_size
from pipeline.images.pixels import FORMATS, ImageError, Picture, decode, encode, encode_rgb, output_format, pixels_of

LIMIT = 40_000_000
H, W = 24, 36
FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])


def scene(h: int = H, w: int = W) -> np.ndarray:
    """A smooth colour image without any symmetry, so that a turn or a flip shows."""
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    return np.stack([200 * x + 20, 220 * y + 10, 120 * x * y + 60 * y + 40], -1).round().astype(np.uint8)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int, colour: int, lines: list[bytes], *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def error_class(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels)
    assert str(caught.value)
    return caught.value.error_class


def picture_or_reason(data: bytes) -> Picture | ImageError:
    """Anything else that is raised fails the test."""
    try:
        return decode(data, 1_000_000)
    except ImageError as e:
        return e


def is_sound(outcome: Picture | ImageError) -> bool:
    if isinstance(outcome, ImageError):
        return bool(outcome.error_class and str(outcome))
    return outcome.rgb.dtype == np.uint8 and outcome.rgb.ndim == 3 and outcome.rgb.shape[2] == 3


def seeds() -> dict[str, bytes]:
    image, exif = Image.fromarray(scene()), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "what it shows"
    frames = [Image.fromarray(noise(9, 7, 3) + np.uint8(40 * n)) for n in range(3)]
    return {
        "JPEG": saved(image, "JPEG", exif=exif),
        "progressive JPEG": saved(image, "JPEG", progressive=True, quality=60),
        "CMYK JPEG": saved(image.convert("CMYK"), "JPEG"),
        "MPO": saved(image, "MPO", save_all=True, append_images=frames[:1]),
        "PNG": saved(image, "PNG", exif=exif),
        "palette PNG": saved(image.quantize(16), "PNG", transparency=3),
        "APNG": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "16-bit PNG": saved(Image.fromarray(noise(8, 8).astype(np.uint16) * 256), "PNG"),
        "GIF": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "WebP": saved(image, "WEBP", exif=exif),
        "animated WebP": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "TIFF": saved(image, "TIFF"),
        "deflated TIFF": saved(image, "TIFF", compression="tiff_adobe_deflate"),
        "LZW TIFF": saved(image, "TIFF", compression="tiff_lzw"),
        "JPEG TIFF": saved(image, "TIFF", compression="jpeg"),
        "16-bit TIFF": saved(Image.fromarray(noise(8, 8).astype(np.uint16) * 256), "TIFF"),
        "1-bit TIFF": saved(image.convert("1"), "TIFF", compression="group4"),
        "pages of TIFF": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "BMP": saved(image, "BMP"),
        "palette BMP": saved(image.quantize(16), "BMP"),
        "PPM": saved(image, "PPM"),
        "1-bit PBM": saved(image.convert("1"), "PPM"),
    }


SEEDS = seeds()


# ── what is no image, or a broken one ──────────────────────────────────────────────────────────────────────────────


def test_an_empty_file_is_named_as_such() -> None:
    assert error_class(b"") == "EmptyFile"


@pytest.mark.parametrize(
    "data",
    [
        b"hello, I am text called a.jpg",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
        b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\0" * 64,
        saved(Image.fromarray(scene()), "EPS"),
        saved(Image.fromarray(scene()), "PDF"),
        saved(Image.fromarray(scene()), "ICO"),
        saved(Image.fromarray(scene()), "TGA"),
    ],
    ids=["text", "svg", "pdf", "eps", "zeros", "whole eps", "whole pdf", "ico", "tga"],
)
def test_what_is_in_no_known_format_is_an_unknown_format(data: bytes) -> None:
    assert error_class(data) == "UnknownFormat"


def test_no_other_reader_of_pillow_is_ever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them start programs (EPS: Ghostscript), some render (WMF), some are read by hardly anyone."""
    Image.init()

    def asked(*args: object) -> None:
        pytest.fail("a reader was asked that must not be")

    foreign = set(Image.OPEN) - {*FORMATS, "MPO"}
    assert len(foreign) > 20
    for name in foreign:
        monkeypatch.setitem(Image.OPEN, name, (asked, asked))
    heads = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\xd7\xcd\xc6\x9a\0\0",
        b"\x01\0\0\0",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        b"8BPS",
    )
    for head in heads:
        assert error_class(head + bytes(200)) == "UnknownFormat"


def test_what_a_file_carries_beside_its_pixels_is_bounded() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    line = [bytes(3)]
    for extra in (chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb)):
        tracemalloc.start()
        assert error_class(png(1, 1, 8, 2, line, extra)) == "BrokenImage"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
    # EXIF and a profile that are large and not packed: as large as the file at most, and left out of what is carried.
    picture = decode(png(1, 1, 8, 2, line, chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0" + bytes(5_000_000))))
    assert picture.exif is None
    profile = saved(Image.fromarray(scene()), "JPEG", icc_profile=bytes(10_000_000))
    assert decode(profile).icc == "unreadable"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_a_truncated_file_is_a_broken_image(image_format: str) -> None:
    data = saved(Image.fromarray(noise(64, 64, 3)), image_format)
    assert error_class(data[: len(data) * 2 // 3]) in ("BrokenImage", "UnknownFormat")


def test_a_truncated_jpeg_is_not_filled_with_gray() -> None:
    data = saved(Image.fromarray(noise(64, 64, 3)), "JPEG")
    assert error_class(data[: len(data) // 2]) == "BrokenImage"
    assert error_class(data[:-40]) == "BrokenImage"


def test_too_many_pixels_are_refused_on_the_header_alone() -> None:
    # The pixels are not there at all: whoever decoded before he counted would say BrokenImage.
    data = png(20_000, 20_000, 8, 2, [])
    assert len(data) < 200
    assert error_class(data) == "TooManyPixels"


@pytest.mark.parametrize("kind", ["VP8 ", "VP8L", "VP8X"])
def test_a_webp_is_refused_before_pillow_makes_room_for_it(kind: str) -> None:
    # Opening alone takes Pillow two canvases of 4 bytes a pixel: 200 bytes asked for 2 GB.
    size, side = (16_383).to_bytes(2, "little"), (16_382).to_bytes(3, "little")
    body = {
        "VP8 ": b"\0\0\0\x9d\x01\x2a" + size + size,
        "VP8L": b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little"),
        "VP8X": bytes(4) + side + side,
    }[kind]
    data = kind.encode() + struct.pack("<I", len(body)) + body
    data = b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data
    assert error_class(data) == "TooManyPixels"
    assert pixels_of(data) == (16_383**2)


def test_what_a_webp_says_of_its_size_is_what_pillow_makes_of_it() -> None:
    image = Image.fromarray(scene(7, 33))
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}):
        assert webp_size(saved(image, "WEBP", **options)) == (33, 7)


def test_the_pixel_limit_is_inclusive() -> None:
    data = saved(Image.new("L", (40, 25)), "PNG")
    assert decode(data, 1000).rgb.shape == (25, 40, 3)
    assert error_class(data, 999) == "TooManyPixels"


def test_the_pixel_limit_holds_for_every_format() -> None:
    assert {name: error_class(data, 30) for name, data in SEEDS.items()} == dict.fromkeys(SEEDS, "TooManyPixels")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_that_have_no_range_are_an_unsupported_mode(mode: str) -> None:
    assert error_class(saved(Image.new(mode, (4, 4)), "TIFF")) == "UnsupportedMode"


@given(st.binary(max_size=300), st.sampled_from(["", *SEEDS]))
@FUZZ
def test_random_bytes_raise_nothing_but_image_errors(data: bytes, head: str) -> None:
    assert is_sound(picture_or_reason(SEEDS.get(head, b"")[:30] + data))


@given(
    st.sampled_from(list(SEEDS)), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=12), st.data()
)
@FUZZ
def test_mutated_images_raise_nothing_but_image_errors(
    name: str, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    mutated = bytearray(SEEDS[name])
    for place, value in changes:
        mutated[place % len(mutated)] = value
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated))) :]
    assert is_sound(picture_or_reason(bytes(mutated)))


@given(st.sampled_from(list(SEEDS)), st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), min_size=1, max_size=4))
@FUZZ
def test_mutated_headers_raise_nothing_but_image_errors(name: str, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(SEEDS[name])
    for place, value in changes:
        mutated[place % len(mutated)] = value
    assert is_sound(picture_or_reason(bytes(mutated)))


@pytest.mark.parametrize("name", SEEDS)
def test_an_image_cut_off_anywhere_raises_nothing_but_image_errors(name: str) -> None:
    data = SEEDS[name]
    assert all(is_sound(picture_or_reason(data[:end])) for end in range(0, len(data), 1 + len(data) // 2000))


@pytest.mark.parametrize("name", SEEDS)
def test_any_byte_of_a_header_may_be_anything(name: str) -> None:
    data = SEEDS[name]
    for place in range(min(120, len(data))):
        for value in (0, 1, 2, 5, 127, 128, 255):
            assert is_sound(picture_or_reason(data[:place] + bytes([value]) + data[place + 1 :]))


@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]),
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
)
@FUZZ
@example(b"", b"II*\0\x08\0\0\0", "JPEG")
@example(b"\x01\0\x12\x01\x02\0\x04\0\0\0abc\0", b"II*\0\x08\0\0\0", "JPEG")
def test_broken_exif_raises_nothing_but_image_errors(content: bytes, head: bytes, image_format: str) -> None:
    data = saved(Image.fromarray(scene(8, 8)), image_format, exif=b"Exif\0\0" + head + content)
    assert is_sound(picture_or_reason(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_an_image_whose_exif_is_broken_is_still_an_image(image_format: str) -> None:
    rgb = scene(8, 8)
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12", b"Exif\0\0not exif"):
        picture = decode(saved(Image.fromarray(rgb), image_format, exif=exif), LIMIT)
        assert psnr_db(picture.rgb, rgb) > 30
        assert picture.exif_orientation == 1


# ── modes and formats ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_a_lossless_file_is_decoded_exactly(image_format: str) -> None:
    picture = decode(saved(Image.fromarray(scene()), image_format), LIMIT)
    np.testing.assert_array_equal(picture.rgb, scene())
    assert picture.rgb.dtype == np.uint8
    facts = (picture.format, picture.gray, picture.alpha, picture.bit_depth, picture.frames, picture.exif_orientation)
    assert facts == (image_format, False, None, 8, 1, 1)
    assert (picture.orig_width, picture.orig_height) == (W, H)


def test_a_lossless_webp_is_decoded_exactly() -> None:
    picture = decode(saved(Image.fromarray(scene()), "WEBP", lossless=True), LIMIT)
    np.testing.assert_array_equal(picture.rgb, scene())
    assert picture.format == "WEBP"


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "YCbCr"])
def test_a_jpeg_of_each_colour_space_shows_the_scene(mode: str) -> None:
    image = Image.fromarray(scene())
    picture = decode(saved(image.convert(mode), "JPEG", quality=95, subsampling=0), LIMIT)
    expected = np.array(image.convert(mode).convert("RGB"))
    assert psnr_db(picture.rgb, expected) > 38
    assert picture.format == "JPEG"
    assert picture.gray == (mode == "L")


def test_a_palette_with_transparency_has_colours_and_alpha() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    picture = decode(saved(image, "PNG", transparency=bytes([255, 0, 128])), LIMIT)
    np.testing.assert_array_equal(picture.rgb, [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, [[255, 0, 128]])
    assert not picture.gray


def test_a_gray_image_has_three_equal_planes() -> None:
    samples = noise(9, 5)
    picture = decode(saved(Image.fromarray(samples), "PNG"), LIMIT)
    np.testing.assert_array_equal(picture.rgb, np.repeat(samples[..., None], 3, -1))
    assert picture.gray
    assert picture.alpha is None


def test_gray_with_alpha_keeps_both() -> None:
    samples, alpha = noise(9, 5), noise(5, 9).T
    image = Image.merge("LA", [Image.fromarray(samples), Image.fromarray(np.ascontiguousarray(alpha))])
    picture = decode(saved(image, "PNG"), LIMIT)
    np.testing.assert_array_equal(picture.rgb[..., 1], samples)
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert picture.gray


def test_alpha_is_kept_beside_colours_that_it_hides() -> None:
    rgba = noise(6, 7, 4)
    rgba[0, 0] = (200, 100, 50, 0)
    picture = decode(saved(Image.fromarray(rgba), "PNG"), LIMIT)
    np.testing.assert_array_equal(picture.rgb, rgba[..., :3])
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(image_format: str) -> None:
    samples = np.array([[0, 128, 129, 257, 1000, 32768, 65407, 65535]], np.uint16)
    data = b"P5 8 1 65535\n" + samples.astype(">u2").tobytes() if image_format == "PPM" else saved(
        Image.fromarray(samples), image_format
    )  # fmt: skip
    picture = decode(data, LIMIT)
    np.testing.assert_array_equal(picture.rgb[0, :, 0], np.round(samples[0] / 257))
    assert picture.bit_depth == 16
    assert picture.gray


def test_16_bit_rgb_png_is_scaled() -> None:
    samples = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1100
    picture = decode(png(5, 4, 16, 2, [line.astype(">u2").tobytes() for line in samples]), LIMIT)
    assert picture.bit_depth == 16
    assert not picture.gray
    assert np.abs(picture.rgb.astype(float) - samples / 257).max() <= 1


def test_16_bit_rgb_tiff_is_scaled_and_known_as_such() -> None:
    samples = (np.arange(4 * 5 * 3, dtype="<u2").reshape(4, 5, 3) * 1100).tobytes()
    tags = [
        (256, 3, 1, 5),
        (257, 3, 1, 4),
        (258, 3, 3, 8 + 2 + 9 * 12 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 128),
    ]
    tags += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, len(samples))]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + b"\0" * 4
    data = (head + struct.pack("<HHH", 16, 16, 16)).ljust(128, b"\0") + samples
    picture = decode(data, LIMIT)
    assert np.abs(picture.rgb.astype(float) - np.frombuffer(samples, "<u2").reshape(4, 5, 3) / 257).max() <= 1
    assert picture.bit_depth == 16


def test_16_bit_gray_with_alpha_is_known_as_16_bit() -> None:
    lines = [struct.pack(">HH", 1000 * n, 65535 - 3000 * n) for n in range(6)]
    picture = decode(png(1, 6, 16, 4, lines), LIMIT)
    assert picture.bit_depth == 16
    assert picture.gray
    assert picture.alpha is not None
    assert np.abs(picture.rgb[:, 0, 0].astype(float) - np.arange(6) * 1000 / 257).max() <= 1
    assert np.abs(picture.alpha[:, 0].astype(float) - (65535 - np.arange(6) * 3000) / 257).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit_is_black_and_white(image_format: str) -> None:
    bits = noise(9, 13) > 127
    picture = decode(saved(Image.fromarray(bits), image_format), LIMIT)
    np.testing.assert_array_equal(picture.rgb[..., 2], bits * 255)
    assert picture.gray
    assert picture.bit_depth == 1


def test_the_first_frame_of_a_gif_stands_for_it() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    picture = decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMIT)
    np.testing.assert_array_equal(picture.rgb, np.array(frames[0]))
    assert picture.frames == 3
    assert picture.format == "GIF"


@pytest.mark.parametrize("name", ["APNG", "animated WebP", "pages of TIFF"])
def test_the_first_frame_of_other_animations_stands_for_them(name: str) -> None:
    picture = decode(SEEDS[name], LIMIT)
    assert picture.frames == 3
    if name != "animated WebP":
        np.testing.assert_array_equal(picture.rgb, noise(9, 7, 3))


def test_an_mpo_is_its_first_picture_and_is_written_as_jpeg() -> None:
    picture = decode(SEEDS["MPO"], LIMIT)
    assert psnr_db(picture.rgb, scene()) > 30
    assert picture.frames == 2
    assert output_format(picture.format) == "JPEG"


# ── orientation ────────────────────────────────────────────────────────────────────────────────────────────────────

# EXIF 2.32, tag 0x0112: what was done to the upright image to get the stored one.
STORED_FROM_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def oriented(orientation: int, image_format: str, upright: np.ndarray, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_FROM_UPRIGHT[orientation](upright))
    return saved(Image.fromarray(stored), image_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(orientation: int, image_format: str) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    picture = decode(oriented(orientation, image_format, scene(), **options), LIMIT)
    assert picture.rgb.shape == (H, W, 3)
    if image_format == "JPEG":
        assert psnr_db(picture.rgb, scene()) > 40
    else:
        np.testing.assert_array_equal(picture.rgb, scene())


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_recorded_size_and_orientation_give_the_upright_size(orientation: int, image_format: str) -> None:
    picture = decode(oriented(orientation, image_format, scene()), LIMIT)
    size = (picture.orig_height, picture.orig_width)
    assert (size[::-1] if picture.exif_orientation in (5, 6, 7, 8) else size) == (H, W)
    if image_format != "TIFF":
        assert picture.exif_orientation == orientation


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_alpha_is_turned_with_its_colours(orientation: int) -> None:
    rgba = noise(H, W, 4)
    picture = decode(oriented(orientation, "PNG", rgba), LIMIT)
    np.testing.assert_array_equal(picture.rgb, rgba[..., :3])
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_16_bit_gray_is_turned_upright(orientation: int) -> None:
    upright = noise(H, W).astype(np.uint16) * 257
    picture = decode(oriented(orientation, "PNG", upright), LIMIT)
    np.testing.assert_array_equal(picture.rgb[..., 0], upright // 257)


def test_an_orientation_that_does_not_exist_changes_nothing() -> None:
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        picture = decode(saved(Image.fromarray(scene()), "PNG", exif=exif), LIMIT)
        np.testing.assert_array_equal(picture.rgb, scene())


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def picture_of(image: Image.Image, image_format: str = "PNG") -> Picture:
    return decode(saved(image, image_format), LIMIT)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "PPM"])
def test_lossless_formats_give_back_what_was_written(image_format: str) -> None:
    rgb = noise(H, W, 3)
    assert opened(encode(rgb, picture_of(Image.fromarray(rgb)), image_format)).format == image_format
    np.testing.assert_array_equal(np.array(opened(encode(rgb, picture_of(Image.fromarray(rgb)), image_format))), rgb)
    np.testing.assert_array_equal(np.array(opened(encode_rgb(rgb, image_format))), rgb)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "BMP", "PPM"])
def test_gray_stays_gray(image_format: str) -> None:
    samples = np.tile(np.arange(36, dtype=np.uint8) * 7, (24, 1))
    picture = picture_of(Image.fromarray(samples))
    image = opened(encode(picture.rgb, picture, image_format))
    assert image.mode == "L"
    assert np.abs(np.asarray(image).astype(int) - samples).max() <= (4 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_written_where_the_format_has_it(image_format: str, mode: str) -> None:
    image = Image.fromarray(noise(H, W, len(mode) if mode == "LA" else 4), mode)
    picture = picture_of(image)
    back = opened(encode(picture.rgb, picture, image_format))
    assert back.mode == mode
    np.testing.assert_array_equal(np.array(back), np.array(image))


def test_alpha_is_written_to_webp() -> None:
    rgba = np.dstack([scene(), np.tile(np.arange(W, dtype=np.uint8) * 7, (H, 1))])
    picture = picture_of(Image.fromarray(rgba))
    back = opened(encode(picture.rgb, picture, "WEBP"))
    assert back.mode == "RGBA"
    np.testing.assert_array_equal(np.array(back)[..., 3], rgba[..., 3])


def test_alpha_is_left_out_of_a_jpeg_and_a_bmp() -> None:
    picture = picture_of(Image.fromarray(np.dstack([scene(), noise(H, W)])))
    for image_format in ("JPEG", "BMP", "PPM"):
        assert opened(encode(picture.rgb, picture, image_format)).mode == "RGB"


def test_a_jpeg_is_written_at_quality_95_with_full_colour() -> None:
    # Colours that change from pixel to pixel: with 4:2:0 they would be mixed.
    rgb = scene(64, 64)
    rgb[:, ::2, 0], rgb[::2, :, 2] = 230, 20
    data = encode(rgb, picture_of(Image.fromarray(rgb)), "JPEG")
    image = opened(data)
    assert JpegImagePlugin.get_sampling(image) == 0
    assert image.quantization == opened(saved(Image.fromarray(rgb), "JPEG", quality=95)).quantization
    assert psnr_db(np.array(image), rgb) > 40
    assert encode_rgb(rgb, "JPEG") == data


def test_the_format_of_an_output_is_that_of_its_source_where_it_can_be() -> None:
    formats = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
    assert [output_format(f) for f in formats] == list(formats)
    assert output_format("GIF") == "PNG"


@pytest.mark.parametrize("name", SEEDS)
def test_every_kind_of_source_can_be_written_as_what_it_becomes_and_as_png(name: str) -> None:
    picture = decode(SEEDS[name], LIMIT)
    for image_format in (output_format(picture.format), "PNG"):
        back = decode(encode(picture.rgb, picture, image_format), LIMIT)
        assert back.format == image_format
        assert back.rgb.shape == picture.rgb.shape
        assert back.gray == picture.gray
        assert psnr_db(back.rgb, picture.rgb) > 25
