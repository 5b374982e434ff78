"""Colour spaces declared without an ICC profile: gamma, primaries, H.273 codes, HDR."""

import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.colour import eetf
from imagemill.pipeline.images.decode import decode_image
from tests.support.exact_writers import bmp_file, chunk, png_file, with_jp2_boxes
from tests.support.icc import ADOBE_RGB, DISPLAY_P3, SRGB, convert_from_srgb, rgb_profile, to_xyz
from tests.support.image_files import KEEP
from tests.support.sample_images import encode_as, scene

BT2020 = np.array([[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]])
RGB = scene(40, 60)
GRAY = RGB[..., 1]
WHITE = (31270, 32900)
NOTHING, GAMMA_1_8, LINEAR = (chunk(b"gAMA", struct.pack(">I", value)) for value in (45455, 55556, 100000))


def build_chromaticities(primaries: np.ndarray) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *WHITE, *np.round(primaries * 100_000).astype(int).ravel()))


def encode_png(samples: np.ndarray, *chunks: bytes, bits: int = 8) -> bytes:
    planes = samples if samples.ndim == 3 else samples[..., None]
    return png_file(planes.astype(int), bits, {1: 0, 2: 4, 3: 2, 4: 6}[planes.shape[2]], *chunks)


def to_linear_light(rgb: np.ndarray) -> np.ndarray:
    v = rgb / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def to_linear_in_primaries(rgb: np.ndarray, primaries: np.ndarray) -> np.ndarray:
    """Convert sRGB uint8 to linear light in other primaries."""
    return (
        np.linalg.solve(to_xyz(primaries), to_xyz(SRGB) @ to_linear_light(rgb).reshape(-1, 3).T).T.reshape(rgb.shape).clip(0)
    )


def nits_to_pq_signal(nits: np.ndarray) -> np.ndarray:
    """Apply the inverse of SMPTE ST 2084 as in ITU-R BT.2100, table 4."""
    y = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def nits_to_hlg_signal(rgb: np.ndarray) -> np.ndarray:
    """Convert light of a 1000 cd/m² BT.2020 display (1.0 = 203 cd/m²) to HLG: BT.2100, table 5."""
    light = rgb * 203 / 1000
    luminance = (light @ to_xyz(BT2020)[1])[..., None]
    scene_light = light * np.where(luminance > 0, luminance, 1) ** (-0.2 / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light), a * np.log(np.maximum(12 * scene_light - b, 1e-9)) + c)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("chunks", "gamma"), [(LINEAR, 1.0), (GAMMA_1_8, 1.8)])
def test_png_gamma_is_converted(chunks: bytes, gamma: float, bits: int) -> None:
    samples = np.round(to_linear_light(RGB) ** (1 / gamma) * ((1 << bits) - 1))
    decoded = decode_image(encode_png(samples, chunks, bits=bits))
    assert decoded.icc == "converted"
    if bits == 16:
        assert np.abs(decoded.rgb.astype(int) - RGB).max() <= 1
    else:
        assert psnr_db(decoded.rgb, RGB) > (36 if gamma == 1 else 44)
    gray = decode_image(encode_png(samples[..., 1], chunks, bits=bits))
    assert (gray.icc, gray.is_gray) == ("converted", True)
    np.testing.assert_array_equal(gray.rgb[..., 1], decoded.rgb[..., 1])


@pytest.mark.parametrize(
    "chunks",
    [
        (NOTHING,),
        (NOTHING, build_chromaticities(SRGB)),
        (build_chromaticities(SRGB),),
        (chunk(b"sRGB", b"\0"), LINEAR),
        (chunk(b"cICP", bytes([1, 13, 0, 1])), LINEAR),
        (chunk(b"gAMA", bytes(4)),),
        (chunk(b"gAMA", struct.pack(">I", 45000)),),
        (chunk(b"cICP", bytes([2, 2, 0, 1])),),
    ],
)
def test_srgb_is_not_converted(chunks: tuple[bytes, ...]) -> None:
    decoded = decode_image(encode_png(RGB, *chunks))
    np.testing.assert_array_equal(decoded.rgb, RGB)
    assert decoded.icc == "none"


@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3, BT2020], ids=["Adobe RGB", "Display P3", "BT.2020"])
def test_png_primaries_are_converted(primaries: np.ndarray) -> None:
    converted_samples = convert_from_srgb(RGB, primaries, 2.2)
    decoded = decode_image(encode_png(converted_samples, NOTHING, build_chromaticities(primaries)))
    assert decoded.icc == "converted"
    assert psnr_db(decoded.rgb, RGB) > 44
    assert psnr_db(converted_samples, RGB) < 34


def test_png_colour_chunks_have_standard_precedence() -> None:
    """cICP, then iCCP, then sRGB, then gAMA and cHRM (PNG, 3rd edition, section 4.3)."""
    cicp, srgb = chunk(b"cICP", bytes([12, 13, 0, 1])), chunk(b"sRGB", b"\0")
    png_with_profile = encode_as(Image.fromarray(RGB), "PNG", icc_profile=rgb_profile(ADOBE_RGB, 1.0))
    icc = png_with_profile[33 : png_with_profile.index(b"IDAT") - 4]
    by_cicp, by_icc = decode_image(encode_png(RGB, cicp)).rgb, decode_image(encode_png(RGB, icc)).rgb
    np.testing.assert_array_equal(decode_image(encode_png(RGB, LINEAR, srgb, icc, cicp)).rgb, by_cicp)
    np.testing.assert_array_equal(decode_image(encode_png(RGB, LINEAR, srgb, icc)).rgb, by_icc)
    np.testing.assert_array_equal(decode_image(encode_png(RGB, LINEAR, srgb)).rgb, RGB)
    assert (by_cicp != by_icc).any()


def test_png_video_range_is_expanded() -> None:
    for bits in (8, 16):
        samples = np.round((16 + RGB / 255 * 219) * (1 << bits - 8))
        decoded = decode_image(encode_png(samples, chunk(b"cICP", bytes([1, 13, 0, 0])), bits=bits))
        assert np.abs(decoded.rgb.astype(int) - RGB).max() <= 1
        alpha = np.dstack([samples, np.full(GRAY.shape, 1000 if bits == 16 else 4)])
        assert decode_image(encode_png(alpha, chunk(b"cICP", bytes([1, 13, 0, 0])), bits=bits)).alpha.max() == 4


@pytest.mark.parametrize("chunks", [LINEAR, build_chromaticities(DISPLAY_P3), chunk(b"cICP", bytes([9, 16, 0, 1]))])
def test_kept_colours_are_unchanged_and_named(chunks: bytes) -> None:
    decoded = decode_image(encode_png(RGB, chunks), config=KEEP)
    np.testing.assert_array_equal(decoded.rgb, RGB)
    assert decoded.icc.startswith("ignored: ")


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (chunk(b"cICP", bytes([1, 1, 0, 1])), "ignored: transfer function BT.709"),
        (chunk(b"cICP", bytes([1, 13, 6, 1])), "ignored: cICP that is not RGB"),
        (chunk(b"cICP", bytes([77, 13, 0, 1])), "ignored: primaries 77"),
        (chunk(b"cICP", bytes([1, 99, 0, 1])), "ignored: transfer function 99"),
        (build_chromaticities(np.zeros((3, 2))), "ignored: invalid primaries"),
        (chunk(b"iCCP", b"a\0\0" + b"not zlib"), "unreadable"),
    ],
)
def test_unsupported_colours_are_named(chunks: bytes, message: str) -> None:
    decoded = decode_image(encode_png(RGB, chunks))
    np.testing.assert_array_equal(decoded.rgb, RGB)
    assert decoded.icc == message


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_hdr_without_highlights_is_not_tone_mapped(transfer: int) -> None:
    """Up to 203 cd/m², which is white, tone mapping changes nothing."""
    light = to_linear_in_primaries(RGB, BT2020)
    signal = np.round((nits_to_pq_signal(light * 203) if transfer == 16 else nits_to_hlg_signal(light)) * 65535)
    decoded = decode_image(encode_png(signal, chunk(b"cICP", bytes([9, transfer, 0, 1])), bits=16))
    assert decoded.icc == "converted"
    assert np.abs(decoded.rgb.astype(int) - RGB).max() <= 1
    for bits, least_psnr_db in ((10, 45), (12, 55)):
        samples = np.round(signal / 65535 * ((1 << bits) - 1)).astype(np.uint16)
        options = {"pixelformat": "yuv444", "matrix": 0, "primaries": 9, "transfer": transfer, "bitspersample": bits}
        decoded = decode_image(imagecodecs.avif_encode(samples, level=100, **options))
        assert (decoded.icc, decoded.bit_depth) == ("converted", bits)
        assert psnr_db(decoded.rgb, RGB) > least_psnr_db


def test_tone_mapping_preserves_order_and_hue() -> None:
    nits = np.array([1, 10, 50, 100, 203, 400, 1000, 2000, 4000])
    signal = np.round(nits_to_pq_signal(nits) * 65535)
    ramp = decode_image(
        encode_png(np.repeat(signal[None, :, None], 3, 2), chunk(b"cICP", bytes([9, 16, 0, 1])), bits=16)
    ).rgb[0, :, 0]
    assert (np.diff(ramp.astype(int)) > 0).all()
    assert ramp[-1] == 255
    # Dark parts are unchanged: 10 cd/m² is 10/203 of white.
    assert abs(int(ramp[1]) - round(255 * (1.055 * (10 / 203) ** (1 / 2.4) - 0.055))) <= 1
    orange_signal = np.round(nits_to_pq_signal(np.array([[[2000.0, 1000.0, 500.0]]])) * 65535)
    mapped_light = to_linear_light(
        decode_image(encode_png(orange_signal, chunk(b"cICP", bytes([1, 16, 0, 1])), bits=16)).rgb
    )[0, 0]
    np.testing.assert_allclose(mapped_light / mapped_light[0], [1, 0.5, 0.25], atol=0.01)


def test_eetf_has_fixed_points_of_bt_2390() -> None:
    """The curve is the identity below the knee, rises, and maps source peak to target peak."""
    nits = np.linspace(0.01, 1000, 500)
    mapped_light = eetf(nits, 1000)
    assert mapped_light[-1] == pytest.approx(203)
    assert mapped_light[0] == pytest.approx(nits[0])
    assert (np.diff(mapped_light) > 0).all()
    sample_max = nits_to_pq_signal(np.array(203.0)) / nits_to_pq_signal(np.array(1000.0))
    knee = (1.5 * sample_max - 0.5) * nits_to_pq_signal(np.array(1000.0))
    np.testing.assert_allclose(mapped_light[nits_to_pq_signal(nits) < knee], nits[nits_to_pq_signal(nits) < knee])


def test_avif_colours_are_converted() -> None:
    converted_samples = convert_from_srgb(RGB, DISPLAY_P3, 2.2)
    options = {"level": 100, "pixelformat": "yuv444", "matrix": 0}
    decoded = decode_image(imagecodecs.avif_encode(converted_samples, primaries=12, transfer=4, **options))
    assert decoded.icc == "converted"
    assert psnr_db(decoded.rgb, RGB) > 44
    linear = np.round(to_linear_light(RGB) * 4095).astype(np.uint16)
    decoded = decode_image(imagecodecs.avif_encode(linear, primaries=1, transfer=8, bitspersample=12, **options))
    assert psnr_db(decoded.rgb, RGB) > 50
    gray = imagecodecs.avif_encode(
        linear[..., 1], level=100, pixelformat="yuv400", bitspersample=12, transfer=8, primaries=1
    )
    assert psnr_db(decode_image(gray).rgb[..., :1], GRAY[..., None]) > 50
    # A profile takes precedence over code points.
    png_with_profile = decode_image(
        encode_as(
            Image.fromarray(convert_from_srgb(RGB, ADOBE_RGB)), "AVIF", quality=100, icc_profile=rgb_profile(ADOBE_RGB)
        )
    )
    assert png_with_profile.icc == "converted"


def test_jpeg2000_profile_is_converted() -> None:
    jpeg_2000 = imagecodecs.jpeg2k_encode(convert_from_srgb(RGB, ADOBE_RGB), level=0, codecformat="jp2", reversible=True)
    decoded = decode_image(with_jp2_boxes(jpeg_2000, {b"colr": bytes([2, 0, 0]) + rgb_profile(ADOBE_RGB)}))
    assert decoded.icc == "converted"
    assert psnr_db(decoded.rgb, RGB) > 44


def test_bmp_colours_are_converted() -> None:
    endpoints = np.round(to_xyz(DISPLAY_P3).T * 2**30).astype(int).ravel()
    calibrated = struct.pack("<I9I3I", 0, *endpoints, *[round(2.2 * 65536)] * 3)
    rows = [np.ascontiguousarray(row[:, ::-1]).tobytes() for row in convert_from_srgb(RGB, DISPLAY_P3, 2.2)]
    for header in (108, 124):
        decoded = decode_image(bmp_file(rows, RGB.shape[1::-1], 24, header=header, tail=calibrated))
        assert decoded.icc == "converted"
        assert psnr_db(decoded.rgb, RGB) > 44
    rows = [np.ascontiguousarray(row[:, ::-1]).tobytes() for row in convert_from_srgb(RGB, ADOBE_RGB)]
    profile, size = rgb_profile(ADOBE_RGB), 124 + 60 * 3 * 40
    profile_header = b"DEBM" + bytes(48) + struct.pack("<4I", 0, size, len(profile), 0)
    decoded = decode_image(bmp_file(rows, RGB.shape[1::-1], 24, header=124, tail=profile_header, more=profile))
    assert decoded.icc == "converted"
    assert psnr_db(decoded.rgb, RGB) > 44
    linked = b"KNIL" + bytes(48) + struct.pack("<4I", 0, size, 9, 0)
    assert (
        decode_image(bmp_file(rows, RGB.shape[1::-1], 24, header=124, tail=linked)).icc
        == "ignored: a profile in another file"
    )
    for kind in (b"BGRs", b" niW", bytes(4)):
        assert decode_image(bmp_file(rows, RGB.shape[1::-1], 24, header=124, tail=kind)).icc == "none"


def test_alpha_is_not_converted() -> None:
    alpha = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    decoded = decode_image(encode_png(np.dstack([RGB, alpha]), LINEAR))
    np.testing.assert_array_equal(decoded.alpha, alpha)
    np.testing.assert_array_equal(decoded.rgb[alpha > 0], decode_image(encode_png(RGB, LINEAR)).rgb[alpha > 0])
    palette = Image.fromarray(RGB).quantize(16)
    data = encode_as(palette, "PNG")
    at = data.index(b"PLTE") - 4
    decoded = decode_image(data[:at] + LINEAR + data[at:])
    np.testing.assert_array_equal(decoded.rgb, decode_image(encode_png(np.asarray(palette.convert("RGB")), LINEAR)).rgb)
