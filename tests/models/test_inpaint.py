"""Inpainting fills missing values and keeps known values: damage, the push-pull fill and the task."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.architectures.masked import push_pull
from imagemill.models.damage import drop_blocks, drop_pixels, drop_strokes
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.objectives.inpaint import draw_damage
from imagemill.models.precision import Precision
from imagemill.models.tasks.inpaint import InpaintParams
from imagemill.models.tasks.task import Sample, SampleError

TASK = TASK_OBJECTIVES["inpaint"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ARCHITECTURES["masked"](widths=(8, 8), blocks=1).eval()


def fill(model, sample: Sample, **params: object):
    return TASK.predict(model, [sample], InpaintParams(**params), Precision())[0]


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_push_pull_keeps_known_values(h, w, share, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, h, w, generator=generator)
    known_mask = (torch.rand(2, 1, h, w, generator=generator) >= share).float().expand_as(x)
    filled = push_pull(x, known_mask)
    assert torch.equal(filled[known_mask > 0], x[known_mask > 0])
    for image, mask, out in zip(x, known_mask, filled, strict=True):
        if not mask.any():
            assert (out == 0.5).all()
            continue
        for plane, plane_known, plane_out in zip(image, mask, out, strict=True):
            values = plane[plane_known > 0]
            assert plane_out.min() >= values.min() - 1e-5
            assert plane_out.max() <= values.max() + 1e-5


def test_push_pull_fills_a_plane_with_the_mean():
    x = torch.rand(1, 3, 20, 30)
    known_mask = torch.ones_like(x)
    known_mask[:, 1] = 0
    assert torch.allclose(push_pull(x, known_mask)[:, 1], x[:, [0, 2]].mean(1), atol=1e-6)


def test_damage_has_the_requested_share():
    generator = torch.Generator().manual_seed(0)
    assert 1 - drop_pixels(200, 200, 0.3, generator).float().mean() == pytest.approx(0.3, abs=0.02)
    assert 1 - drop_blocks(200, 200, 0.15, 16, generator).float().mean() == pytest.approx(0.15, abs=0.02)
    assert 0 < 1 - drop_strokes(200, 200, 3, generator).float().mean() < 0.9
    shares = [1 - draw_damage(32, 32, generator).float().mean() for _ in range(50)]
    assert min(shares) > 0
    assert max(shares) < 1


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(1, 40), st.integers(0, 2**31))
def test_damage_of_a_seed_is_stable(h, w, share, side, seed):
    generator = torch.Generator().manual_seed(seed)
    known_mask = np.ones((h, w), bool)
    while (~known_mask).sum() < min(share, 0.95) * h * w:
        y, x = (int(torch.randint(1 - side, n, (1,), generator=generator)) for n in (h, w))
        known_mask[max(y, 0) : y + side, max(x, 0) : x + side] = False
    assert np.array_equal(drop_blocks(h, w, share, side, torch.Generator().manual_seed(seed)).numpy(), known_mask)


@pytest.mark.parametrize(
    "params", [{"missing": "random"}, {"missing": "random", "share": 0.2, "block": 8}, {"missing": "green"}]
)
def test_inpaint_keeps_known_pixels_bit_identical(params, model, crops):
    sample = Sample(crops[0], seed=7)
    one, two = fill(model, sample, **params), fill(model, sample, **params)
    assert np.array_equal(one.image, two.image)
    changed_share = (one.image != crops[0]).any(2).mean()
    assert 0 < changed_share <= one.columns["missing_share"] * (3 if params["missing"] == "green" else 1) + 1e-6
    if params["missing"] == "green":
        assert np.array_equal(one.image[..., [0, 2]], crops[0][..., [0, 2]])


def test_known_mask_of_mask_alpha_and_key(model, crops):
    rgb = crops[1].copy()
    h, w = rgb.shape[:2]
    hole = np.zeros((h, w), bool)
    hole[20:40, 30:70] = True
    rgb[hole] = (255, 0, 255)
    ways = {
        "file": Sample(rgb, mask=(hole * 255).astype(np.uint8)),
        "alpha": Sample(rgb, alpha=((~hole) * 255).astype(np.uint8)),
        "key": Sample(rgb),
    }
    images = {}
    for missing, sample in ways.items():
        output = fill(model, sample, missing=missing)
        images[missing] = output.image
        assert np.array_equal(output.image[~hole], rgb[~hole])
        assert (output.image[hole] != rgb[hole]).any()
        assert output.columns["missing_share"] == pytest.approx(hole.mean())
        assert output.drops_alpha == (missing == "alpha")
    assert np.array_equal(images["file"], images["key"])
    assert np.array_equal(images["file"], images["alpha"])


@pytest.mark.parametrize(
    ("missing", "sample", "error_class"),
    [
        ("alpha", {}, "NoAlpha"),
        ("file", {}, "NoMask"),
        ("file", {"mask": np.zeros((3, 4), np.uint8)}, "MaskSize"),
        ("file", {"mask": np.full((96, 128), 255, np.uint8)}, "NothingKnown"),
    ],
)
def test_known_mask_refuses_unsuitable_samples(missing, sample, error_class, model, crops):
    with pytest.raises(SampleError) as error:
        fill(model, Sample(crops[0], **sample), missing=missing)
    assert error.value.error_class == error_class


def test_inpaint_returns_a_complete_image_unchanged(model, crops):
    output = fill(model, Sample(crops[0], mask=np.zeros(crops[0].shape[:2], np.uint8)), missing="file")
    assert np.array_equal(output.image, crops[0])
