"""Colours of pictures with an ICC profile."""

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
from tests.support.icc import ADOBE_RGB, DISPLAY_P3, SRGB_PROFILE, as_tagged, cmyk_profile, gray_profile, rgb_profile
from tests.support.pictures import KEEP, LOSSLESS, H, W, encode, opened, rewritten, saved


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3], ids=["Adobe RGB", "Display P3"])
def test_a_wide_gamut_file_has_the_colours_of_its_srgb_twin(photo, primaries, image_format):
    tagged = as_tagged(photo, primaries)
    assert psnr_db(tagged, photo) < 35  # without its profile it looks dull
    options = {"quality": 98} if image_format in ("JPEG", "AVIF") else LOSSLESS[image_format]
    data = saved(tagged, image_format, icc_profile=rgb_profile(primaries), **options)
    picture = decode_image(data)
    assert picture.icc == "converted"
    assert psnr_db(picture.rgb, photo) > (36 if image_format in ("JPEG", "AVIF") else 44)
    # What is written is sRGB and says nothing else.
    assert "icc_profile" not in rewritten(data).info


def test_a_kept_profile_leaves_the_pixels_and_goes_with_them(photo):
    tagged, icc = as_tagged(photo, ADOBE_RGB), rgb_profile(ADOBE_RGB)
    data = saved(tagged, "PNG", icc_profile=icc)
    picture = decode_image(data, config=KEEP)
    assert picture.icc == "kept"
    np.testing.assert_array_equal(picture.rgb, tagged)
    for image_format in METADATA_FORMATS:
        again = encode(picture.rgb, picture, image_format)
        assert opened(again).info["icc_profile"] == icc
        assert psnr_db(decode_image(again).rgb, photo) > 33  # and who applies it sees the photo
    assert "icc_profile" not in opened(encode(picture.rgb, picture, "BMP")).info


def test_a_file_tagged_as_srgb_is_not_touched(photo):
    picture = decode_image(saved(photo, "PNG", icc_profile=SRGB_PROFILE))
    np.testing.assert_array_equal(picture.rgb, photo)
    assert picture.icc == "none"
    gray = decode_image(saved(photo[..., 1], "PNG", icc_profile=SRGB_PROFILE))
    np.testing.assert_array_equal(gray.rgb[..., 0], photo[..., 1])
    assert gray.icc == "none"
    assert decode_image(saved(photo, "PNG")).icc == "none"


def test_gray_with_a_profile_is_converted_and_stays_gray(photo):
    linear = np.round(255 * (photo[..., 1] / 255) ** 2.2).astype(np.uint8)
    for data in (
        saved(linear, "PNG", icc_profile=gray_profile(1.0)),
        saved(linear, "PNG", icc_profile=rgb_profile(ADOBE_RGB, 1.0)),
        saved(Image.merge("LA", [Image.fromarray(linear)] * 2), "PNG", icc_profile=gray_profile(1.0)),
        saved(linear.astype(np.uint16) * 257, "PNG", icc_profile=gray_profile(1.0)),
    ):
        picture = decode_image(data)
        assert (picture.icc, picture.is_gray) == ("converted", True)
        assert np.ptp(picture.rgb, 2).max() == 0
        assert np.abs(picture.rgb[..., 0].astype(int) - photo[..., 1])[linear > 20].max() <= 5
        assert rewritten(data).mode in ("L", "LA")
    kept = decode_image(saved(linear, "PNG", icc_profile=gray_profile(1.0)), config=KEEP)
    np.testing.assert_array_equal(kept.rgb[..., 0], linear)
    assert opened(encode(kept.rgb, kept, "PNG")).info["icc_profile"] == gray_profile(1.0)
    # A profile of gray would be wrong for colours.
    kept.is_gray = False
    assert "icc_profile" not in opened(encode(kept.rgb, kept, "PNG")).info


def test_transparency_is_not_a_colour(photo):
    alpha = np.tile(np.arange(W, dtype=np.uint8) * 2, (H, 1))
    picture = decode_image(saved(np.dstack([as_tagged(photo, ADOBE_RGB), alpha]), "PNG", icc_profile=rgb_profile(ADOBE_RGB)))
    assert picture.icc == "converted"
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert psnr_db(picture.rgb, photo) > 44
    palette = Image.fromarray(as_tagged(photo, ADOBE_RGB)).quantize(64)
    palette.info["transparency"] = 3
    picture = decode_image(saved(palette, "PNG", icc_profile=rgb_profile(ADOBE_RGB)))
    assert picture.icc == "converted"
    assert picture.alpha is not None
    assert psnr_db(picture.rgb, photo) > 27


@pytest.mark.parametrize("config", [ImageConfig(), KEEP])
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_by_its_profile(photo, image_format, config):
    cmyk = Image.fromarray(photo).convert("CMYK")
    data = saved(cmyk, image_format, icc_profile=cmyk_profile(), **({"quality": 98} if image_format == "JPEG" else {}))
    picture = decode_image(data, config=config)
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
    assert decode_image(saved(cmyk, image_format)).icc == "none"


@pytest.mark.parametrize("config", [ImageConfig(), KEEP])
def test_a_broken_or_foreign_profile_rejects_nothing_and_goes_nowhere(photo, config):
    whole = rgb_profile(ADOBE_RGB)
    broken = [b"no profile", whole[:200], b"\0" * 4000, whole[:128] + b"\xff" * 400, cmyk_profile(), gray_profile(2.2)]
    for icc in broken:
        data = saved(photo, "PNG", icc_profile=icc)
        picture = decode_image(data, config=config)
        assert picture.icc == "unreadable"
        np.testing.assert_array_equal(picture.rgb, photo)
        assert "icc_profile" not in rewritten(data, config=config).info


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=8), st.sampled_from(["RGB", "L", "CMYK"]))
@settings(max_examples=150)
def test_any_byte_of_a_profile_may_be_anything(changes, mode):
    icc = bytearray({"RGB": rgb_profile(ADOBE_RGB), "L": gray_profile(2.0), "CMYK": cmyk_profile()}[mode])
    for place, value in changes:
        icc[place % len(icc)] = value
    picture = decode_image(saved(Image.new(mode, (9, 7)), "TIFF", icc_profile=bytes(icc)))
    assert picture.icc in ("none", "converted", "unreadable")
    assert picture.rgb.shape == (7, 9, 3)


def test_threads_share_a_transform(photo):
    data = saved(as_tagged(photo, ADOBE_RGB), "PNG", icc_profile=rgb_profile(ADOBE_RGB))
    one = decode_image(data).rgb
    with ThreadPoolExecutor(4) as pool:
        for picture in pool.map(decode_image, [data] * 32):
            np.testing.assert_array_equal(picture.rgb, one)
