"""Every combination of options for WebP, AVIF and JPEG 2000, compared with the samples."""

import itertools
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import TO_STORED_ORIENTATION, decode_image
from tests.support.exact_writers import box, clap, with_jp2_boxes, with_property
from tests.support.sample_images import decode_error_class, encode_as, noise, scene, visible_pixels

FEW_OR_ALL = pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.chaos)])
H, W = 24, 34
COLOURS = scene(H, W)
ALPHA = np.tile(np.linspace(0, 255, W).round().astype(np.uint8), (H, 1))
RGBA = np.dstack([COLOURS, ALPHA])

EVERY_WEBP = list(itertools.product((True, False), ("RGB", "RGBA", "L", "LA"), (0, 4, 6), (1, 3), (False, True)))


@FEW_OR_ALL
def test_webp_of_every_kind_is_decoded_exactly(step: int) -> None:
    for lossless, mode, method, frames, exif in EVERY_WEBP[::step]:
        image = Image.fromarray(RGBA).convert(mode)
        options = {"lossless": lossless, "method": method, "quality": 95, "exact": True}
        if frames > 1:
            options |= {"save_all": True, "append_images": [image.rotate(180), image.transpose(0)]}
        if exif:
            block = Image.Exif()
            block[0x010E] = "what it shows"
            options["exif"] = block
        decoded, expected = decode_image(encode_as(image, "WEBP", **options)), np.asarray(image.convert("RGBA"))
        is_visible = expected[..., 3] > 0
        case = f"{mode}, lossless {lossless}, method {method}, {frames} frames"
        if lossless:
            assert (decoded.rgb[is_visible] == expected[is_visible][:, :3]).all(), case
        else:
            assert psnr_db(decoded.rgb[:, 5:], expected[:, 5:, :3]) > 33, case
        # Pillow stores alpha in some animations even if all pixels are opaque.
        assert decoded.alpha is not None or not mode.endswith("A"), case
        assert decoded.alpha is None or (decoded.alpha == expected[..., 3]).all(), case
        assert (decoded.frames, decoded.bit_depth, decoded.metadata.exif is not None) == (frames, 8, exif), case


def test_webp_first_frame_is_placed_on_canvas() -> None:
    """A frame may be smaller than the canvas, and the rest of the canvas is transparent."""
    frames = [Image.fromarray(RGBA), Image.fromarray(RGBA[::-1].copy())]
    data = bytearray(encode_as(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True))
    canvas, frame = data.index(b"VP8X") + 12, data.index(b"ANMF") + 8
    data[canvas : canvas + 6] = (W + 19).to_bytes(3, "little") + (H + 9).to_bytes(3, "little")
    # Frame positions are stored in units of two pixels.
    data[frame : frame + 6] = (5).to_bytes(3, "little") + (2).to_bytes(3, "little")
    decoded = decode_image(bytes(data))
    expected = np.zeros((H + 10, W + 20), np.uint8)
    expected[4 : 4 + H, 10 : 10 + W] = ALPHA
    np.testing.assert_array_equal(decoded.alpha, expected)
    np.testing.assert_array_equal(decoded.rgb[4 : 4 + H, 10 : 10 + W][ALPHA > 0], COLOURS[ALPHA > 0])
    assert decoded.frames == 2


def test_webp_truncated_or_inconsistent_is_broken() -> None:
    data = encode_as(Image.fromarray(RGBA), "WEBP")
    for share in (0.2, 0.5, 0.9, 0.98):
        assert decode_error_class(data[: int(len(data) * share)]) == "BrokenImage"
    canvas = data.index(b"VP8X") + 12
    for side in (W - 5, W + 40):
        assert decode_error_class(data[:canvas] + side.to_bytes(3, "little") + data[canvas + 3 :]) == "BrokenImage"


EVERY_AVIF = [
    (bits, layout, channels, matrix)
    for bits, layout, channels, matrix in itertools.product(
        (8, 10, 12), ("yuv444", "yuv422", "yuv420", "yuv400"), (1, 3, 4), (0, 1, 6, 9)
    )
    if (matrix != 0 or layout == "yuv444") and (channels == 1) == (layout == "yuv400") and (channels > 1 or matrix == 6)
]


@FEW_OR_ALL
def test_avif_of_every_kind_is_decoded_exactly(step: int) -> None:
    for bits, layout, channels, matrix in EVERY_AVIF[::step]:
        levels = RGBA[..., :channels] if channels > 1 else COLOURS[..., 1]
        samples = np.round(levels * (((1 << bits) - 1) / 255)).astype(np.uint8 if bits == 8 else np.uint16)
        options = {"pixelformat": layout, "matrix": matrix, "primaries": 1, "transfer": 13, "speed": 8}
        decoded = decode_image(imagecodecs.avif_encode(samples, level=100, bitspersample=bits, **options))
        expected = levels[..., :3] if channels > 1 else np.repeat(levels[..., None], 3, 2)
        case = f"{bits} bits, {layout}, {channels} channels, matrix {matrix}"
        is_visible = visible_pixels(decoded)
        if matrix == 0 or channels == 1:
            assert (decoded.rgb == expected)[is_visible].all(), case
        else:
            assert psnr_db(decoded.rgb[is_visible], expected[is_visible]) > (42 if layout == "yuv444" else 36), case
        assert decoded.alpha is None if channels < 4 else (decoded.alpha == ALPHA).all(), case
        assert (decoded.bit_depth, decoded.is_gray, decoded.frames, decoded.icc) == (bits, channels == 1, 1, "none"), case


@pytest.mark.parametrize(
    "options", [{"range": "limited"}, {"range": "full"}, {"alpha_premultiplied": True}, {"tile_rows": 1}]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_avif_of_pillow_is_decoded(options: dict, mode: str) -> None:
    image = Image.fromarray(RGBA).convert(mode)
    decoded, expected = (
        decode_image(encode_as(image, "AVIF", quality=100, subsampling="4:4:4", **options)),
        image.convert("RGBA"),
    )
    is_opaque = ALPHA > 128
    assert psnr_db(decoded.rgb[is_opaque], np.asarray(expected)[is_opaque][:, :3]) > 40
    if mode.endswith("A"):
        assert np.abs(decoded.alpha.astype(int) - ALPHA).max() <= 2


@pytest.mark.parametrize("orientation", TO_STORED_ORIENTATION)
@pytest.mark.parametrize("is_cropped", [False, True])
def test_avif_is_cropped_before_it_is_turned(orientation: int, is_cropped: bool) -> None:
    upright = COLOURS
    stored_image = np.ascontiguousarray(TO_STORED_ORIENTATION[orientation](upright))
    border = np.pad(stored_image, ((3, 5), (7, 1), (0, 0))) if is_cropped else stored_image
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_as(Image.fromarray(border), "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    if is_cropped:
        data = with_property(data, clap(stored_image.shape[1], stored_image.shape[0], 7, 3, border.shape[1::-1]))
    decoded = decode_image(data)
    assert decoded.rgb.shape == upright.shape
    assert psnr_db(decoded.rgb, upright) > 38
    assert decoded.exif_orientation == orientation


def test_avif_of_more_than_8_bits_is_cropped() -> None:
    samples = np.pad(COLOURS.astype(np.uint16) * 4, ((2, 2), (4, 4), (0, 0)))
    data = imagecodecs.avif_encode(
        samples, level=100, bitspersample=10, pixelformat="yuv444", matrix=0, primaries=1, transfer=8
    )
    decoded = decode_image(with_property(data, clap(W, H, 4, 2, samples.shape[1::-1])))
    assert (decoded.rgb.shape, decoded.icc) == ((H, W, 3), "converted")


def test_avif_crop_outside_image_is_broken() -> None:
    data = encode_as(Image.fromarray(COLOURS), "AVIF")
    for crop in (
        clap(W, H, 1, 0, (W, H)),
        clap(0, 0, 0, 0, (W, H)),
        box(b"clap", bytes(32)),
        clap(W + 2, H, -1, 0, (W, H)),
    ):
        assert decode_error_class(with_property(data, crop)) == "BrokenImage"


def test_avif_sequence_decodes_first_frame() -> None:
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1].copy()), Image.fromarray(COLOURS)]
    decoded = decode_image(
        encode_as(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=100, subsampling="4:4:4")
    )
    assert psnr_db(decoded.rgb, COLOURS) > 38
    assert decoded.frames == 3


def test_avif_is_identified_by_compatible_brands() -> None:
    """A file may begin like a container for any codec; without an AVIF brand it is HEIC."""
    data = encode_as(Image.fromarray(COLOURS), "AVIF")
    assert data[8:12] == b"avif"
    assert decode_image(data[:8] + b"mif1" + data[12:]).format == "AVIF"
    assert decode_error_class(data[: len(data) // 2]) == "BrokenImage"
    assert decode_error_class(data[:40]) == "BrokenImage"


EVERY_JPEG_2000 = list(itertools.product((1, 2, 4, 8, 10, 12, 16), (1, 2, 3, 4), ("jp2", "j2k"), (False, True)))


@FEW_OR_ALL
def test_jpeg2000_of_every_kind_is_decoded_exactly(step: int) -> None:
    for bits, channels, container, transform in EVERY_JPEG_2000[::step]:
        kind = np.uint8 if bits <= 8 else np.uint16
        samples = np.random.default_rng(bits).integers(0, 1 << bits, (H, W, channels)).astype(kind)
        data = imagecodecs.jpeg2k_encode(
            samples if channels > 1 else samples[..., 0],
            level=0,
            codecformat=container,
            reversible=True,
            bitspersample=bits,
            mct=transform and channels == 3,
        )
        decoded, expected = decode_image(data), np.round(samples * (255 / ((1 << bits) - 1))).astype(np.uint8)
        case = f"{bits} bits, {channels} channels, {container}"
        assert (decoded.rgb == expected[..., : 3 if channels > 2 else 1])[visible_pixels(decoded)].all(), case
        assert (decoded.alpha is None) == (channels in (1, 3)), case
        assert decoded.alpha is None or (decoded.alpha == expected[..., -1]).all(), case
        assert (decoded.is_gray, decoded.bit_depth) == (channels < 3, 1 if (bits, channels) == (1, 1) else max(8, bits)), (
            case
        )


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_jpeg2000_signed_samples_start_at_black(kind: type) -> None:
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    samples = np.linspace(low, high, H * W).round().astype(kind).reshape(H, W)
    decoded = decode_image(imagecodecs.jpeg2k_encode(samples, level=0, reversible=True))
    np.testing.assert_array_equal(decoded.rgb[..., 0], np.round((samples.astype(float) - low) * (255 / (high - low))))


def encode_jp2(samples: np.ndarray, boxes: dict[bytes, bytes]) -> bytes:
    return with_jp2_boxes(imagecodecs.jpeg2k_encode(samples, level=0, codecformat="jp2", reversible=True, mct=False), boxes)


def enumerated_colour_box(space: int) -> bytes:
    return bytes([1, 0, 0]) + struct.pack(">I", space)


def test_jpeg2000_channel_definitions_are_applied() -> None:
    opacity_last = struct.pack(">13H", 4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 1, 0)
    bgr = struct.pack(">10H", 3, 0, 0, 3, 1, 0, 2, 2, 0, 1)
    unspecified = struct.pack(">13H", 4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 65535, 65535)
    premultiplied = struct.pack(">13H", 4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 2, 0)
    decoded = decode_image(encode_jp2(RGBA, {b"cdef": opacity_last}))
    np.testing.assert_array_equal(decoded.alpha, ALPHA)
    np.testing.assert_array_equal(decoded.rgb[ALPHA > 0], COLOURS[ALPHA > 0])
    np.testing.assert_array_equal(decode_image(encode_jp2(COLOURS, {b"cdef": bgr})).rgb, COLOURS[..., ::-1])
    decoded = decode_image(encode_jp2(RGBA, {b"cdef": unspecified}))
    np.testing.assert_array_equal(decoded.rgb, COLOURS)
    assert decoded.alpha is None
    assert decode_error_class(encode_jp2(RGBA, {b"cdef": premultiplied})) == "UnsupportedFormat"


def test_jpeg2000_palette_is_applied() -> None:
    samples, palette = noise(H, W) % 5, noise(5, 3)
    boxes = {
        b"colr": enumerated_colour_box(16),
        b"pclr": struct.pack(">HB", 5, 3) + b"\7\7\7" + palette.tobytes(),
        b"cmap": struct.pack(">HBBHBBHBB", 0, 1, 0, 0, 1, 1, 0, 1, 2),
    }
    decoded = decode_image(encode_jp2(samples, boxes))
    np.testing.assert_array_equal(decoded.rgb, palette[samples])
    assert not decoded.is_gray


def test_jpeg2000_colour_space_is_applied() -> None:
    ycc = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    assert psnr_db(decode_image(encode_jp2(ycc, {b"colr": enumerated_colour_box(18)})).rgb, COLOURS) > 45
    cmyk = np.asarray(Image.fromarray(COLOURS).convert("CMYK"))
    assert psnr_db(decode_image(encode_jp2(cmyk, {b"colr": enumerated_colour_box(12)})).rgb, COLOURS) > 45
    for space in (14, 20, 24):
        assert decode_error_class(encode_jp2(COLOURS, {b"colr": enumerated_colour_box(space)})) == "UnsupportedFormat"


def test_jpeg2000_truncated_is_broken() -> None:
    for options in ({}, {"no_jp2": True}):
        data = encode_as(Image.fromarray(noise(H, W, 3)), "JPEG2000", **options)
        for share in (0.1, 0.5, 0.9, 0.99):
            assert decode_error_class(data[: int(len(data) * share)]) == "BrokenImage"
