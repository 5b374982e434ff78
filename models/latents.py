"""Encode images to latents and decode latents to images, with the same result for single images and batches.

A `LatentCoder` makes symbols (int8), a `FloatCoder` makes values (float32). Both compute in float32.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.codec import Codec
from imagemill.models.autoencoder import LatentCoder
from imagemill.models.batches import bytes_to_float, float_to_bytes, to_uint8_batch, to_uint8_images
from imagemill.models.colour import rgb_to_luma
from imagemill.models.memory import describe_need, pass_bytes, too_large
from imagemill.models.metrics import psnr_from_mse, squared_error
from imagemill.models.precision import Precision
from imagemill.models.routes.float_coder import FloatCoder, draw
from imagemill.models.tiling import apply_in_fixed_tiles, apply_tiled, compute_tiles, pad_to_size, tile_side
from imagemill.models.type_checks import require_value

Coder = LatentCoder | FloatCoder


def encode_images(model: LatentCoder, images: Sequence[np.ndarray], step: float, device: str) -> np.ndarray:
    """Encode images (H,W,3) uint8 of one padded size to symbols (B,C,h,w) int8, in tiles."""
    # Large images stay uint8; each tile is converted to float by itself.
    x = to_uint8_batch(images, model.stride, device)
    step_B = torch.full((len(images),), step, device=x.device)

    def encode_tile(tile: Tensor) -> Tensor:
        return model.encode_symbols(select_planes(model, bytes_to_float(tile)), step_B).to(torch.int8)

    halo = model.stride if isinstance(model, Codec) else model.halo
    with torch.inference_mode():
        symbols = apply_tiled(encode_tile, x, tile_side(*x.shape[2:]), halo, Fraction(1, model.stride), model.stride)
    return symbols.cpu().numpy()


def encode_values(
    model: FloatCoder, images: Sequence[np.ndarray], seeds: Sequence[int] | None, precision: Precision
) -> np.ndarray:
    """Encode images (H,W,3) uint8 of one padded size to values (B,C,h,w) float32.

    Images are whole, unless tiles give exactly the same result.

    Args:
        model: the network.
        images: the images.
        seeds: one for each image: draw from the distribution of each latent. None for its mode.
        precision: device, dtype and memory of the network.

    Raises:
        SampleError: when an image is too large for the memory of the worker.
    """
    h, w = images[0].shape[:2]
    is_tiled = model.tiling == "exact" and min(h, w) >= model.min_side
    reach = tile_side(h, w) + 2 * tile_halo(model) if is_tiled else max(h, w)
    needed, memory = pass_bytes(model, min(h, reach), min(w, reach)), precision.memory
    # On a CPU, batches are slower than single images, and the last bits of a latent would depend on its neighbours.
    together = 1 if precision.device == "cpu" else max(1, memory // needed) if needed and memory else len(images)
    if needed and memory and needed > memory and not is_tiled:
        raise too_large(h, w, "never", describe_need(needed, memory), memory / needed, can_blend=False)

    def encode(x_BCHW: Tensor) -> Tensor:
        # Noise is drawn for the whole latent, so that it does not depend on tiles.
        x = bytes_to_float(pad_to_size(x_BCHW, *map(model.padded_side, x_BCHW.shape[2:])))
        mode, deviation = model.distribution(select_planes(model, x))
        return mode.float() if deviation is None or seeds is None else torch.cat([mode, deviation], 1).float()

    batches = []
    for start in range(0, len(images), together):
        # Large images stay uint8; each tile is converted to float by itself.
        x = to_uint8_batch(images[start : start + together], model.stride, precision.device)
        with torch.inference_mode(), precision.autocast():
            if is_tiled:
                tile, scale = tile_side(h, w), Fraction(1, model.factor)
                batches.append(apply_tiled(encode, x, tile, tile_halo(model), scale, model.stride))
            else:
                batches.append(encode(x))
    moments = torch.cat(batches)
    mode, deviation = moments.chunk(2, 1) if moments.shape[1] == 2 * model.latent.channels else (moments, None)
    return draw(mode, deviation, seeds).contiguous().cpu().numpy()


def tile_halo(model: FloatCoder) -> int:
    """Return the overlap of exact tiles, in pixels: no tile at an edge is smaller than the network takes."""
    return model.padded_side(max(model.halo, model.min_side))


def select_planes(model: Any, x_B3HW: Tensor) -> Tensor:
    """Return the planes (B,channels,H,W) that a network takes of RGB images: all three, or luma."""
    return rgb_to_luma(x_B3HW) if model.channels == 1 else x_B3HW


def decode_latent(model: Coder, latent: np.ndarray, size: tuple[int, int], step: float | None, device: str) -> np.ndarray:
    """Decode a latent (C,h,w), int8 or float32, to the image (H,W,3) uint8 of `size` = (H,W).

    Always in float32, one image at a time, in tiles whose size does not depend on free memory. All of these influence the
    last bit, so that a run and a later `decode` agree exactly on the same kind of device.

    Args:
        model: the network.
        latent: symbols of a LatentCoder, or values of a FloatCoder.
        size: (H,W) of the image.
        step: the quantiser step of symbols.
        device: "cpu" or "cuda".
    """
    with torch.inference_mode():
        x_hat = apply_in_fixed_tiles(*tile_arguments(model, latent, size, step, device))
    return to_rgb(model, x_hat)[: size[0], : size[1]]


def latent_psnr(model: Coder, latent: np.ndarray, rgb: np.ndarray, step: float | None, device: str) -> float:
    """Return the PSNR in dB of a decoded latent against its source (H,W,3) uint8, without storing the whole image."""
    squared = 0.0
    with torch.inference_mode():
        for rows, columns, piece in compute_tiles(*tile_arguments(model, latent, rgb.shape[:2], step, device)):
            source = rgb[rows, columns]
            squared += squared_error(to_rgb(model, piece)[: source.shape[0], : source.shape[1]], source)
    return psnr_from_mse(squared / rgb.size)


def tile_arguments(model: Coder, latent: np.ndarray, size: tuple[int, ...], step: float | None, device: str) -> Any:
    """Return the arguments of `apply_in_fixed_tiles` and `compute_tiles` that decode a latent (C,h,w) to bytes."""
    code = torch.from_numpy(np.ascontiguousarray(latent))[None].to(device)
    tile, halo = tile_side(*size) // model.factor, model.halo // model.factor
    if isinstance(model, FloatCoder):
        decode, halo = model.decode, tile_halo(model) // model.factor
        if model.tiling != "exact":
            tile = max(code.shape[2:])
    else:
        step_B = torch.full((1,), require_value(step, "the quantiser step"), device=code.device)

        def decode(y: Tensor) -> Tensor:
            return model.decode_symbols(y, step_B)

    return lambda part: float_to_bytes(decode(part.float())), code, tile, halo, Fraction(model.factor)


def to_rgb(model: Coder, x_hat: Tensor) -> np.ndarray:
    """Convert decoded planes (1,C,h,w) uint8 to RGB (h,w,3) uint8; luma becomes gray."""
    decoded = to_uint8_images(x_hat)[0]
    return decoded if model.channels == 3 else decoded.repeat(3, 2)
