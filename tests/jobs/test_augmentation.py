"""Test flips and rotations of training crops."""

import pytest
import torch

from imagemill.jobs.training.augmentation import augment_batch, build_augmentation


@pytest.mark.parametrize(("augment", "variants"), [("none", 1), ("flip", 2), ("turn", 8)])
def test_augmentation_draws_every_variant_exactly(augment, variants):
    """Variants only move pixels, so no pixel is interpolated."""
    torch.manual_seed(0)
    crop = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    expected = {
        tuple(variant.flatten().tolist())
        for turns in (range(4) if augment == "turn" else [0])
        for turned in [torch.rot90(crop, turns, (1, 2))]
        for variant in ([turned] if augment == "none" else [turned, turned.flip(2)])
    }
    augmented = augment_batch(build_augmentation(augment), crop.expand(200, -1, -1, -1))
    assert augmented.dtype == torch.uint8
    assert {tuple(each.flatten().tolist()) for each in augmented} == expected
    assert len(expected) == variants
