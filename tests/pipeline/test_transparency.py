"""Colours of fully transparent pixels never influence visible results."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.models import checkpoint
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images import samples
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.transparency import fill_hidden
from imagemill.pipeline.run import run
from tests.support.image_files import encode_as

LEVELS = st.integers(0, 255)


def draw_disc(side: int, colour: int) -> np.ndarray:
    """Return (side,side,4) uint8: an opaque gray disc on hidden black."""
    y, x = np.mgrid[:side, :side] - side / 2
    inside = x**2 + y**2 < (side / 3) ** 2
    return np.dstack([np.where(inside, colour, 0).astype(np.uint8)] * 3 + [inside.astype(np.uint8) * 255])


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.5, 0.99]))
def test_fill_hidden_ignores_hidden_colours(height: int, width: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    alpha = np.where(rng.random((height, width)) < share, 0, rng.integers(1, 256, (height, width))).astype(np.uint8)
    first, second = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    second[alpha > 0] = first[alpha > 0]
    decoded_images = [decode_image(encode_as(np.dstack([rgb, alpha]), "PNG")) for rgb in (first, second)]
    assert np.array_equal(decoded_images[0].rgb, decoded_images[1].rgb)
    assert np.array_equal(decoded_images[0].rgb[alpha > 0], first[alpha > 0])
    # If all pixels are visible, the alpha channel may be omitted.
    assert all(np.array_equal(p.alpha if p.alpha is not None else np.full_like(alpha, 255), alpha) for p in decoded_images)


@given(LEVELS, st.integers(3, 90))
def test_fill_hidden_of_one_colour_is_that_colour(level: int, side: int) -> None:
    rgba = draw_disc(side, level)
    if rgba[..., 3].any():
        assert np.abs(decode_image(encode_as(rgba, "PNG")).rgb.astype(int) - level).max() <= 1


def test_fill_hidden_in_strips_equals_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    alpha = np.where(rng.random((61, 83)) < 0.7, 0, 255).astype(np.uint8)
    one_piece = rng.integers(0, 256, (61, 83, 3), np.uint8)
    in_strips = one_piece.copy()
    fill_hidden(one_piece, alpha)
    monkeypatch.setattr(samples, "STRIP_PIXELS", 500)
    fill_hidden(in_strips, alpha)
    assert np.array_equal(one_piece, in_strips)


@pytest.mark.parametrize(("sigma", "side"), [(8, 160), (25, 160), (8, 520)])
def test_noise_level_ignores_hidden_pixels(sigma: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the smooth fill nor noise in hidden pixels changes the noise level. Large images are read in crops."""
    monkeypatch.setattr("imagemill.models.objectives.denoise.TILE", 512)
    rng = np.random.default_rng(1)
    ramp = np.linspace(60, 190, side)[:, None, None] + np.linspace(0, 40, side)[None, :, None]
    noisy = np.clip(ramp + rng.normal(0, sigma, (side, side, 3)), 0, 255).round().astype(np.uint8)
    alpha = np.full((side, side), 255, np.uint8)
    alpha[:, side // 2 :] = 0
    card, weights = checkpoint.read(TASKS["denoise"].default_checkpoint)
    model, objective = checkpoint.build(card, weights).eval(), TASK_OBJECTIVES["denoise"]
    decoded = decode_image(encode_as(np.dstack([noisy, alpha]), "PNG"))
    (half,) = objective.predict(model, [Sample(decoded.rgb, decoded.alpha)], TASKS["denoise"].Params(), Precision("cpu"))
    assert half.columns["sigma"] == pytest.approx(sigma, rel=0.1)


def test_upscaled_alpha_edges_have_no_dark_rings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/disc.png").write_bytes(encode_as(draw_disc(64, 255), "PNG"))
    record = run(RunConfig(task="upscale", input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    assert record["ok"] == 1
    upscaled_image = Image.open(io.BytesIO((tmp_path / "out/images/disc.png").read_bytes()))
    assert upscaled_image.mode in ("RGBA", "LA")
    assert upscaled_image.getchannel("A").getextrema() == (0, 255)
    on_white = Image.new("RGBA", upscaled_image.size, "white")
    on_white.alpha_composite(upscaled_image.convert("RGBA"))
    assert np.asarray(on_white).min() >= 250
