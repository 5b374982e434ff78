"""Random flips and quarter turns of training crops, by torchvision.

Only training workers import this file: importing torchvision takes 2 s.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2


def build_augmentation(augment: str) -> v2.Transform:
    """Return the transform of one crop (C,H,W) for "turn" (quarter turns and flips), "flip" (left to right) or "none"."""
    if augment == "none":
        return v2.Identity()
    flip = v2.RandomHorizontalFlip()
    if augment == "flip":
        return flip
    quarter_turns = [v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]
    return v2.Compose([v2.RandomChoice(quarter_turns), flip])


def augment_batch(transform: v2.Transform, x_BCHW: Tensor) -> Tensor:
    """Apply a transform to each crop of a batch by itself; a transform of the batch would treat all crops alike."""
    return torch.stack([transform(crop) for crop in x_BCHW])
