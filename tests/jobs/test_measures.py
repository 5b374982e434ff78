"""Test evaluation metrics on curves and images with known results."""

import gc

import numpy as np
import pytest
import torch
from matplotlib.tri import Triangulation

from imagemill.jobs.evaluations.compress import bd_rate_percent, build_bd_table, psnr_at_rate
from imagemill.jobs.evaluations.digits import PCA, decode_flat, measure_ripple
from imagemill.jobs.evaluations.inpaint import interpolate
from imagemill.jobs.evaluations.stylize import compare_ripples, loss_after
from imagemill.jobs.evaluations.upscale import luma_psnr_db
from imagemill.models.architectures import ARCHITECTURES


def test_luma_psnr_follows_the_papers(crops):
    gray = np.full((20, 30, 3), 100, np.uint8)
    # A difference of 1 in all three channels changes luma by 219/255. The border is ignored.
    brighter_image = gray + np.uint8(1)
    brighter_image[:2] = brighter_image[:, -2:] = 255
    assert luma_psnr_db(brighter_image, gray, 2) == pytest.approx(20 * np.log10(255 / (219 / 255)), abs=1e-3)
    assert luma_psnr_db(crops[0], crops[0], 2) == np.inf


CURVE = [(0.25, 28.0), (0.5, 31.0), (1.0, 34.0), (2.0, 38.0)]


def test_bd_rate_of_known_curves():
    assert bd_rate_percent(CURVE, CURVE) == pytest.approx(0, abs=1e-9)
    assert bd_rate_percent(CURVE, [(rate / 2, quality) for rate, quality in CURVE]) == pytest.approx(-50, abs=1e-6)
    assert bd_rate_percent(CURVE, [(rate * 2, quality) for rate, quality in CURVE]) == pytest.approx(100, abs=1e-6)
    # A point with more bits and lower quality is ignored.
    assert bd_rate_percent([*CURVE, (3.0, 37.0)], CURVE) == pytest.approx(0, abs=1e-9)
    assert bd_rate_percent(CURVE, [(rate, quality + 50) for rate, quality in CURVE]) is None

    # Lossless points have an infinite PSNR.
    exact = [*CURVE[:-1], (2.0, np.inf)]
    assert bd_rate_percent(exact, CURVE[:-1]) == pytest.approx(0, abs=1e-9)
    assert bd_rate_percent([(rate, np.inf) for rate, _ in CURVE], CURVE) is None
    assert bd_rate_percent(CURVE, [*[(rate, np.inf) for rate, _ in CURVE[1:]], (0.25, 31.0)]) is None
    assert psnr_at_rate(0.75, [{"bits/pixel": 0.75, "PSNR dB": np.inf}]) is None


def test_loss_after_takes_the_best_loss_so_far():
    """The last step reports the loss of the written image; earlier steps report the best loss so far."""
    # The line search tried the third point and rejected it.
    curve = [9, 5, 7, 4, 3.9]
    assert [loss_after(curve, steps, 4) for steps in range(5)] == [9, 5, 5, 4, 3.9]
    assert loss_after(curve, 2, 2) == 3.9


def test_ripples_are_compared_where_photos_are_flat():
    rng = np.random.default_rng(0)
    photo = np.full((64, 128, 3), 128, np.uint8)
    photo[:, 72:] = rng.integers(0, 256, (64, 56, 3))
    wave = (128 + 40 * np.cos(2 * np.pi * np.arange(128) / 8)).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    noise = rng.integers(0, 256, (64, 128, 3), np.uint8)
    painted = {"gatys": {"a": noise, "b": noise}, "adain": {"a": np.where(photo == 128, wave, noise), "b": noise}}
    gatys, adain, contents, style = compare_ripples({"a": photo, "b": noise}, painted, [wave])
    assert gatys["ripples %"] == pytest.approx(100 / 16, rel=0.15)
    assert gatys["times gatys"] == 1
    assert adain["ripples %"] > 95
    assert adain["times gatys"] == pytest.approx(adain["ripples %"] / gatys["ripples %"])
    assert contents["ripples %"] is None
    assert style["ripples %"] > 95


def test_bd_table_lists_the_better_jpeg_first():
    lines = [{"bits/pixel": rate, "payload bits/pixel": rate / 2, "PSNR dB": quality} for rate, quality in CURVE]
    worse = [line | {"bits/pixel": line["bits/pixel"] * 2} for line in lines]
    table = build_bd_table(lines, {"JPEG 4:2:0": worse, "JPEG 4:4:4": lines, "WebP": lines})
    assert [line["against"] for line in table] == ["JPEG 4:4:4, the better", "JPEG 4:2:0", "WebP"]
    assert [line["all bytes %"] for line in table] == pytest.approx([0, -50, 0], abs=1e-6)
    assert table[0]["payload %"] == pytest.approx(-50, abs=1e-6)


def test_interpolation_is_linear_inside_the_hull():
    y, x = np.mgrid[:32, :40]
    plane = np.stack([4 * x + 3 * y, 5 * x, 7 * y], -1).astype(np.uint8)
    lost_mask = np.random.default_rng(0).random((32, 40, 1)) < 0.5
    lost_mask[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    known_mask = np.broadcast_to(~lost_mask, plane.shape)
    # Interpolation reproduces a linear plane inside the convex hull of the four corners.
    assert np.array_equal(interpolate(np.where(known_mask, plane, 99), known_mask), plane)
    known_mask = np.ones(plane.shape, bool)
    known_mask[..., 0] = False
    mean = ((plane[..., 1].astype(float) + plane[..., 2]) / 2).round()
    assert np.array_equal(interpolate(plane, known_mask)[..., 0], mean)


def test_interpolation_is_nearest_outside_the_hull(crops):
    rgb = crops[0]
    known_mask = np.zeros(rgb.shape, bool)
    known_mask[40:60, 40:60] = True
    filled = interpolate(rgb, known_mask)
    assert np.array_equal(filled[0, 0], rgb[40, 40])
    assert np.array_equal(filled[40:60, 40:60], rgb[40:60, 40:60])


def test_interpolation_frees_its_triangles(crops: list[np.ndarray]) -> None:
    known_mask = np.broadcast_to((np.arange(96 * 128).reshape(96, 128) % 3 > 0)[..., None], crops[0].shape)
    interpolate(crops[0], known_mask)
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Triangulation)]


def test_pca_values_for_a_given_error():
    x = np.random.default_rng(0).normal(size=(200, 8, 8))
    pca = PCA(x)
    for values in (1, 20, 63):
        mse = np.square(pca.restore(x, values) - x).mean()
        assert pca.values_for(x, mse * (1 + 1e-9)) == values
    assert pca.restore(x, 64) == pytest.approx(x, abs=1e-9)
    assert np.square(pca.restore(x, 64, quantised=True) - x).mean() < 1e-3


def test_ripple_measures_checkerboards():
    y, x = np.mgrid[:12, :12]
    assert measure_ripple(np.full((3, 12, 12), 0.4)) == pytest.approx(0)
    assert measure_ripple(((x + y) % 2)[None] * 0.2) == pytest.approx(0.1 * 255)


def test_transposed_decoder_ripples():
    """A transposed convolution leaves a checkerboard; upsampling with a convolution does not."""
    code = torch.rand(5, 4, 7, 7, generator=torch.Generator().manual_seed(0)) * 5
    flat = {}
    for upsample in ("nearest", "transposed"):
        torch.manual_seed(0)
        model = ARCHITECTURES["conv"](upsample=upsample)
        with torch.inference_mode():
            flat[upsample] = decode_flat(model, code)
        assert flat[upsample].shape == (245, 12, 12)
    assert measure_ripple(flat["nearest"]) < 1e-3
    assert measure_ripple(flat["transposed"]) > 1
