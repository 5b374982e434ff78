"""Test the measure of ripples on synthetic waves."""

import numpy as np
import pytest

from imagemill.models.ripples import all_blocks, find_flat_blocks, gradient_energy


def share(luma: np.ndarray) -> float:
    rgb = np.repeat(luma.clip(0, 255).round().astype(np.uint8)[..., None], 3, 2)
    ripples, total = gradient_energy(rgb, all_blocks(rgb))
    return ripples / total


@pytest.mark.parametrize("period", [2, 4, 8])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_ripple_share_of_waves_is_high(period, axes):
    grid = np.indices((96, 80))
    waves = [np.cos(2 * np.pi * grid[axis] / period) for axis in axes]
    assert share(128 + 40 * np.prod(waves, 0)) > 0.95


def test_ripple_share_of_other_textures_is_low():
    rows = np.indices((96, 80))[0]
    assert share(128 + 40 * np.cos(2 * np.pi * rows / 5.5)) < 0.05
    noise = np.random.default_rng(0).normal(128, 20, (256, 256))
    assert share(noise) == pytest.approx(0.0625, abs=0.005)


def test_flat_blocks_exclude_texture():
    rgb = np.full((64, 96, 3), 90, np.uint8)
    rgb[:, 64:] = np.random.default_rng(0).integers(0, 256, (64, 32, 3))
    corners = find_flat_blocks(rgb)
    assert {x for _, x in corners.tolist()} == {0, 16}
    assert len(corners) == 6
    assert gradient_energy(rgb, corners) == (0, 0)
    assert find_flat_blocks(rgb[:20]).shape == (0, 2)
