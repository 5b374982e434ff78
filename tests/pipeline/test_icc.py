"""Colours of images with an ICC profile."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from tests.support.camera import METADATA_FORMATS
from tests.support.icc import ADOBE_RGB, DISPLAY_P3, SRGB_PROFILE, cmyk_profile, convert_from_srgb, gray_profile, rgb_profile
from tests.support.image_files import KEEP, LOSSLESS, H, W, encode, encode_as, open_image, reencode


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3], ids=["Adobe RGB", "Display P3"])
def test_icc_wide_gamut_equals_srgb_version(photo, primaries, image_format):
    converted_samples = convert_from_srgb(photo, primaries)
    assert psnr_db(converted_samples, photo) < 35  # Without its profile, the photo looks dull.
    options = {"quality": 98} if image_format in ("JPEG", "AVIF") else LOSSLESS[image_format]
    data = encode_as(converted_samples, image_format, icc_profile=rgb_profile(primaries), **options)
    decoded = decode_image(data)
    assert decoded.icc == "converted"
    assert psnr_db(decoded.rgb, photo) > (36 if image_format in ("JPEG", "AVIF") else 44)
    # The output is sRGB and has no profile.
    assert "icc_profile" not in reencode(data).info


def test_icc_keep_preserves_pixels_and_profile(photo):
    converted_samples, icc = convert_from_srgb(photo, ADOBE_RGB), rgb_profile(ADOBE_RGB)
    data = encode_as(converted_samples, "PNG", icc_profile=icc)
    decoded = decode_image(data, config=KEEP)
    assert decoded.icc == "kept"
    np.testing.assert_array_equal(decoded.rgb, converted_samples)
    for image_format in METADATA_FORMATS:
        encoded = encode(decoded.rgb, decoded, image_format)
        assert open_image(encoded).info["icc_profile"] == icc
        assert psnr_db(decode_image(encoded).rgb, photo) > 33  # A viewer that applies the profile shows the photo.
    assert "icc_profile" not in open_image(encode(decoded.rgb, decoded, "BMP")).info


def test_icc_srgb_profile_changes_nothing(photo):
    decoded = decode_image(encode_as(photo, "PNG", icc_profile=SRGB_PROFILE))
    np.testing.assert_array_equal(decoded.rgb, photo)
    assert decoded.icc == "none"
    gray = decode_image(encode_as(photo[..., 1], "PNG", icc_profile=SRGB_PROFILE))
    np.testing.assert_array_equal(gray.rgb[..., 0], photo[..., 1])
    assert gray.icc == "none"
    assert decode_image(encode_as(photo, "PNG")).icc == "none"


def test_icc_gray_is_converted_and_stays_gray(photo):
    linear = np.round(255 * (photo[..., 1] / 255) ** 2.2).astype(np.uint8)
    for data in (
        encode_as(linear, "PNG", icc_profile=gray_profile(1.0)),
        encode_as(linear, "PNG", icc_profile=rgb_profile(ADOBE_RGB, 1.0)),
        encode_as(Image.merge("LA", [Image.fromarray(linear)] * 2), "PNG", icc_profile=gray_profile(1.0)),
        encode_as(linear.astype(np.uint16) * 257, "PNG", icc_profile=gray_profile(1.0)),
    ):
        decoded = decode_image(data)
        assert (decoded.icc, decoded.is_gray) == ("converted", True)
        assert np.ptp(decoded.rgb, 2).max() == 0
        assert np.abs(decoded.rgb[..., 0].astype(int) - photo[..., 1])[linear > 20].max() <= 5
        assert reencode(data).mode in ("L", "LA")
    with_profile = decode_image(encode_as(linear, "PNG", icc_profile=gray_profile(1.0)), config=KEEP)
    np.testing.assert_array_equal(with_profile.rgb[..., 0], linear)
    assert open_image(encode(with_profile.rgb, with_profile, "PNG")).info["icc_profile"] == gray_profile(1.0)
    # A gray profile would be invalid for colours.
    with_profile.is_gray = False
    assert "icc_profile" not in open_image(encode(with_profile.rgb, with_profile, "PNG")).info


def test_icc_does_not_convert_alpha(photo):
    alpha = np.tile(np.arange(W, dtype=np.uint8) * 2, (H, 1))
    decoded = decode_image(
        encode_as(np.dstack([convert_from_srgb(photo, ADOBE_RGB), alpha]), "PNG", icc_profile=rgb_profile(ADOBE_RGB))
    )
    assert decoded.icc == "converted"
    np.testing.assert_array_equal(decoded.alpha, alpha)
    assert psnr_db(decoded.rgb, photo) > 44
    palette = Image.fromarray(convert_from_srgb(photo, ADOBE_RGB)).quantize(64)
    palette.info["transparency"] = 3
    decoded = decode_image(encode_as(palette, "PNG", icc_profile=rgb_profile(ADOBE_RGB)))
    assert decoded.icc == "converted"
    assert decoded.alpha is not None
    assert psnr_db(decoded.rgb, photo) > 27


@pytest.mark.parametrize("config", [ImageConfig(), KEEP])
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_icc_cmyk_is_converted_by_profile(photo, image_format, config):
    cmyk = Image.fromarray(photo).convert("CMYK")
    data = encode_as(cmyk, image_format, icc_profile=cmyk_profile(), **({"quality": 98} if image_format == "JPEG" else {}))
    decoded = decode_image(data, config=config)
    assert decoded.icc == "converted"
    assert decoded.profile is None
    expected = ImageCms.profileToProfile(
        cmyk,
        ImageCms.ImageCmsProfile(io.BytesIO(cmyk_profile())),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert psnr_db(decoded.rgb, np.asarray(expected)) > 32
    assert psnr_db(decoded.rgb, np.asarray(cmyk.convert("RGB"))) < 25
    assert decode_image(encode_as(cmyk, image_format)).icc == "none"


@pytest.mark.parametrize("config", [ImageConfig(), KEEP])
def test_icc_invalid_profile_is_ignored(photo, config):
    valid = rgb_profile(ADOBE_RGB)
    broken_profiles = [
        b"no profile",
        valid[:200],
        b"\0" * 4000,
        valid[:128] + b"\xff" * 400,
        cmyk_profile(),
        gray_profile(2.2),
    ]
    for icc in broken_profiles:
        data = encode_as(photo, "PNG", icc_profile=icc)
        decoded = decode_image(data, config=config)
        assert decoded.icc == "unreadable"
        np.testing.assert_array_equal(decoded.rgb, photo)
        assert "icc_profile" not in reencode(data, config=config).info


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=8), st.sampled_from(["RGB", "L", "CMYK"]))
@settings(max_examples=150)
def test_icc_mutated_profile_rejects_nothing(changes, mode):
    icc = bytearray({"RGB": rgb_profile(ADOBE_RGB), "L": gray_profile(2.0), "CMYK": cmyk_profile()}[mode])
    for offset, value in changes:
        icc[offset % len(icc)] = value
    decoded = decode_image(encode_as(Image.new(mode, (9, 7)), "TIFF", icc_profile=bytes(icc)))
    assert decoded.icc in ("none", "converted", "unreadable")
    assert decoded.rgb.shape == (7, 9, 3)


def test_icc_transform_is_shared_by_threads(photo):
    data = encode_as(convert_from_srgb(photo, ADOBE_RGB), "PNG", icc_profile=rgb_profile(ADOBE_RGB))
    one_decode = decode_image(data).rgb
    with ThreadPoolExecutor(4) as pool:
        for decoded in pool.map(decode_image, [data] * 32):
            np.testing.assert_array_equal(decoded.rgb, one_decode)
