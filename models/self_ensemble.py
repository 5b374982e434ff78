"""Self-ensemble: the mean of a network over the eight flips and quarter turns of an image (Timofte et al. 2016)."""

from typing import Any

import torch
from torch import Tensor

from imagemill.models.precision import Precision
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tiling import pad_to_size


def run_network(
    model: Any, x_BCHW: Tensor, params: ImageParams, precision: Precision, sigma_B: Tensor | None = None
) -> Tensor:
    """Run a network once, or with `ensemble` on all flips and quarter turns of the images, whose results are averaged.

    Args:
        model: a network that takes images of any height and width.
        x_BCHW: images (B,C,H,W) float in [0,1].
        params: says whether there is an ensemble.
        precision: device and dtype.
        sigma_B: noise levels (B,) of values in [0,1], for a network that takes them.

    Returns:
        Images (B,C,scale·H,scale·W), not clipped.
    """
    levels = () if sigma_B is None else (sigma_B,)
    if not params.ensemble:
        return precision.run(model, x_BCHW, *levels)
    h, w = x_BCHW.shape[2:]
    if isinstance(model, ImageNetwork):
        # Padded before the flips: otherwise the padding would be on another side in each, and tiles would differ.
        x_BCHW = pad_to_size(x_BCHW, *(n + -n % model.multiple for n in (h, w)))
    total = x_BCHW.new_zeros(1)
    for turns in range(4):
        for axes in ((), (3,)):
            view = torch.rot90(x_BCHW, turns, (2, 3)).flip(axes).contiguous(memory_format=torch.channels_last)
            y = precision.run(model, view, *levels)
            total = total + torch.rot90(y.flip(axes), -turns, (2, 3))
    scale = total.shape[2] // x_BCHW.shape[2]
    return total[..., : scale * h, : scale * w] / 8
