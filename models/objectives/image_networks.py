"""Run an imported network over images of one size: in batches, whole or in tiles, within the memory of the worker."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from imagemill.models.batches import bytes_to_float, float_to_bytes, to_uint8_batch, to_uint8_images
from imagemill.models.contract import Tiling
from imagemill.models.memory import describe_need, pass_bytes, too_large
from imagemill.models.precision import Precision
from imagemill.models.routes.image_network import DEFAULT_SIGMA, ImageNetwork
from imagemill.models.self_ensemble import run_network
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tasks.task import SampleError
from imagemill.models.tiling import MIN_TILE, apply_blended, apply_tiled, is_out_of_memory, tile_side

BLENDED_TILE, BLENDED_OVERLAP = 384, 64
"""Sides of tiles that are blended, and of what neighbours share, in pixels. Attention needs 10 kB a pixel and more."""
ALIGNMENT = 64
"""The largest multiple that networks pad their inputs to."""


def process_images(
    model: ImageNetwork,
    images: Sequence[np.ndarray],
    params: ImageParams,
    precision: Precision,
    sigma: float | None = None,
) -> list[np.ndarray]:
    """Process images (H,W,3) uint8 of one size to (scale·H,scale·W,3) uint8.

    Images for a network that takes masks are (H,W,4). Their last plane is 255 where a pixel is missing, else 0.

    Args:
        model: the network.
        images: the images, whose pixels may be overwritten.
        params: how the images are tiled, and whether each is processed in all flips and turns.
        precision: device, dtype and memory.
        sigma: noise level of values in [0,1], for a network that takes one. Default: DEFAULT_SIGMA.

    Raises:
        SampleError: when an image is too large for the memory of the worker, or the network gives no valid image.
    """
    h, w = images[0].shape[:2]
    tiling: Tiling = "approximate" if params.tile == "approximate" else model.tiling
    side, overlap = plan_tiles(model, h, w, tiling, precision.memory)
    reach = {"exact": side + 2 * overlap, "approximate": side, "never": max(h, w)}[tiling]
    needed = pass_bytes(model, min(h, reach), min(w, reach))
    advice = {"can_blend": not model.takes_mask, "has_mask": model.takes_mask}
    if tiling != "exact" and needed and precision.memory and needed > precision.memory:
        share = precision.memory / needed
        raise too_large(h, w, tiling, describe_need(needed, precision.memory), share, **advice)
    together = max(1, precision.memory // needed) if needed and precision.memory else len(images)

    def process(x_BCHW: Tensor) -> Tensor:
        y = run_network(model, bytes_to_float(x_BCHW), params, precision, sigma_B)
        check_result(y, x_BCHW, model.scale)
        return y

    results: list[np.ndarray] = []
    for start in range(0, len(images), together):
        # Large images stay uint8; each tile is converted to float by itself.
        x = to_uint8_batch(images[start : start + together], 1, precision.device)
        level = DEFAULT_SIGMA if sigma is None else sigma
        sigma_B = x.new_full((len(x),), level, dtype=torch.float32) if model.takes_noise_level else None
        try:
            with torch.inference_mode():
                if tiling == "exact":
                    y = apply_tiled(
                        lambda part: float_to_bytes(process(part)),
                        x,
                        side,
                        overlap,
                        Fraction(model.scale),
                        in_place=model.scale == 1,
                    )
                elif tiling == "approximate":
                    y = apply_blended(
                        process, x, side, overlap, model.scale, round_up(ALIGNMENT, model.multiple), float_to_bytes
                    )
                else:
                    y = float_to_bytes(process(x))
        except (RuntimeError, MemoryError) as e:
            # A batch is tried again in halves.
            if tiling == "exact" or len(images) > 1 or not is_out_of_memory(e):
                raise
            problem = "do not fit into the free memory"
            raise too_large(h, w, tiling, problem, 0.5, **advice) from None
        results.extend(to_uint8_images(y))
    return results


def plan_tiles(model: ImageNetwork, h: int, w: int, tiling: Tiling, memory: int | None) -> tuple[int, int]:
    """Return the side of the tiles of an image, and the pixels that they share with each neighbour.

    Exact tiles become smaller until a pass fits into the memory, because the result stays the same.
    """
    multiple = model.multiple
    # A network may pad its input to a multiple that its card does not say. Its tiles must begin at multiples too.
    aligned = round_up(ALIGNMENT, multiple)
    if tiling != "exact":
        overlap = round_up(max(model.halo, model.min_side, BLENDED_OVERLAP), aligned)
        return round_up(max(BLENDED_TILE, 2 * overlap), aligned), overlap
    # A tile at an edge that is smaller than the network takes would be padded, where the whole image is not.
    overlap = model.halo if model.halo >= model.min_side else round_up(model.min_side, aligned)
    side = multiple
    # Halves of the side must be multiples too.
    while 2 * side <= tile_side(model.scale * h, model.scale * w):
        side *= 2
    while (
        memory and side >= 2 * MIN_TILE and (pass_bytes(model, *(min(n, side + 2 * overlap) for n in (h, w))) or 0) > memory
    ):
        side //= 2
    return side, overlap


def round_up(length: int, multiple: int) -> int:
    """Return the next multiple of a number."""
    return -(-length // multiple) * multiple


def check_result(y_BCHW: Tensor, x_BCHW: Tensor, scale: int) -> None:
    """Check the output of a network.

    Raises:
        SampleError: when it has not the size that the card says, or values that are no numbers.
    """
    size, expected = tuple(y_BCHW.shape[1:]), (3, *(scale * n for n in x_BCHW.shape[2:]))
    if size != expected:
        raise SampleError("WrongOutputSize", f"the network made {size} of {tuple(x_BCHW.shape[1:])}, not {expected}")
    if not y_BCHW.isfinite().all():
        raise SampleError(
            "NotFinite", "the network gave values that are not finite. Check the image, or set pool.dtype=float32"
        )
