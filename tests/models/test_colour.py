import io

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from imagemill.models.colour import luma_chroma_to_rgb, luma_uint8, replace_chroma, rgb_to_luma


def pillow_luma(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"))


@given(arrays(np.uint8, (7, 5)), arrays(np.float32, (2, 7, 5), elements=st.floats(-0.75, 0.75, width=32)))
def test_replace_chroma_keeps_luma_exactly(luma, chroma):
    assert np.array_equal(pillow_luma(replace_chroma(luma, chroma)), luma)


def test_replace_chroma_keeps_luma_with_strong_chroma():
    luma = np.tile(np.arange(256, dtype=np.uint8), (400, 1))
    chroma = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 400, 256))
    rgb = replace_chroma(luma, chroma)
    assert np.array_equal(pillow_luma(rgb), luma)
    assert (rgb.max(2) != rgb.min(2)).mean() > 0.9


def test_replace_chroma_restores_colours_in_gamut():
    rgb = np.random.default_rng(1).integers(2, 254, (50, 60, 3), dtype=np.uint8)
    planes = np.asarray(Image.fromarray(rgb).convert("YCbCr")).astype(np.float32)
    chroma = (planes[..., 1:].transpose(2, 0, 1) - 128) / 255
    assert np.abs(replace_chroma(pillow_luma(rgb), chroma).astype(int) - rgb).max() <= 4


def test_luma_equals_pillow():
    rgb = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(luma_uint8(rgb), pillow_luma(rgb))
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
    assert np.abs(rgb_to_luma(x)[0, 0].numpy() - pillow_luma(rgb)).max() <= 0.51
    gray = luma_chroma_to_rgb(rgb_to_luma(x), torch.zeros(1, 2, 64, 64))
    assert torch.equal(gray, rgb_to_luma(x).expand_as(gray))


def test_luma_survives_png():
    luma = np.random.default_rng(3).integers(0, 256, (32, 32), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(replace_chroma(luma, np.full((2, 32, 32), 0.2))).save(file, "PNG")
    assert np.array_equal(np.asarray(Image.open(file).convert("L")), luma)
