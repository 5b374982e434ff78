"""Measure the contract of a network that maps images to images, or of one that encodes images to latents."""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from imagemill.models.contract import Contract, LatentContract
from imagemill.models.errors import CheckpointError
from imagemill.models.routes.float_coder import Decode, Encode
from imagemill.models.routes.image_network import Call
from imagemill.models.routes.probe import (
    Run,
    measure_dtypes,
    measure_memory,
    measure_sizes,
    measure_tiling,
    random_images,
)
from imagemill.models.routes.trial import draw_hole, draw_photo

FORMAT_SIDES = (64, 96)
"""Height and width of the image, in pixels, that number formats are compared on."""
PROBE_SIGMA = 15 / 255
"""Noise level at which a network is measured that takes one."""


def image_run(module: nn.Module, call: Call, contract: Contract) -> Run:
    """Return a function that calls a network with images (B,channels,H,W) in [0,1]."""
    low, high = contract.input_range

    def run(x: Tensor) -> Tensor:
        level = x.new_full((len(x),), PROBE_SIGMA) if contract.noise_level else None
        if contract.mask:
            level = draw_hole(*x.shape[2:]).to(x).expand(len(x), -1, -1, -1)
        return (call(module, x * (high - low) + low, level) - low) / (high - low)

    return run


def measure_image_network(module: nn.Module, call: Call, contract: Contract) -> Contract:
    """Measure the scale, the sizes and the tiling of a network whose sizes are not known.

    Args:
        module: the network.
        call: calls the module.
        contract: its input range, channels and noise level.

    Returns:
        The contract with all that was measured.

    Raises:
        CheckpointError: when the network makes no images of its inputs.
    """
    run = image_run(module, call, contract)
    with torch.inference_mode():
        scale, multiple, min_side = measure_sizes(run, contract.channels)
        if scale.denominator > 1:
            raise CheckpointError(
                f"the network makes images of {scale} of the size. It must keep the size or enlarge images"
            )
        side = -(-max(min_side, 8) // multiple) * multiple
        planes = run(random_images(contract.channels, side, side)).shape[1]
    if planes != contract.channels:
        raise CheckpointError(
            f"the network makes {planes} planes of {contract.channels}. It must return as many as it takes"
        )
    sizes = {"scale": scale.numerator, "size_multiple": multiple, "min_side": min_side}
    return add_costs(run, contract.model_copy(update=sizes), multiple, min_side)


def add_costs(run: Run, contract: Contract, multiple: int, min_side: int, pads: bool = False) -> Contract:
    """Return the contract of a network from images to images with its tiling, its memory and its number formats.

    A network that fills holes looks for content in the whole image, so its tiling is "never". It runs in float32, because
    Fourier transforms, which such networks use, take no bfloat16 on a GPU. A CPU converts their inputs, and hides this.

    Args:
        run: calls the network with images in [0,1].
        contract: with channels and scale.
        multiple: the sides of an input that is not padded are multiples of it, in pixels.
        min_side: smallest side of an input that is not padded, in pixels.
        pads: whether the call pads other inputs.
    """
    tiling, halo, alignment = contract.tiling, contract.halo, multiple
    if not contract.mask:
        with torch.inference_mode():
            tiling, halo, alignment = measure_tiling(run, contract.channels, multiple, Fraction(contract.scale), min_side)
    smallest = -(-min_side // multiple) * multiple
    height, width = (-(-max(side, min_side) // multiple) * multiple for side in FORMAT_SIDES)
    if alignment > multiple and not pads:
        # The network pads its input itself, and tiles would have to begin at multiples that it does not ask for.
        tiling, halo, alignment = "never", 0, multiple
    measured: dict[str, Any] = {
        "size_multiple": alignment,
        "tiling": tiling,
        "halo": halo,
        "bytes_per_pixel": measure_memory(run, contract.channels, smallest),
    }
    if not contract.mask:
        measured["dtypes"] = measure_dtypes(run, draw_photo(height, width)[:, : contract.channels])
    return contract.model_copy(update=measured)


def measure_coder(
    module: nn.Module,
    encode: Encode,
    decode: Decode,
    input_range: tuple[float, float],
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
) -> Contract:
    """Measure the latents, the sizes and the tiling of a network that encodes images to latents.

    Args:
        module: the network.
        encode: calls its encoder.
        decode: calls its decoder.
        input_range: the values of black and white.
        scaling_factor: what trainers multiply latents by.
        shift_factor: what trainers subtract from latents before.

    Raises:
        CheckpointError: when the network does not encode images to smaller latents and back.
    """
    low, high = input_range

    def run_encoder(x: Tensor) -> Tensor:
        return encode(module, x * (high - low) + low)[0]

    def run_decoder(z: Tensor) -> Tensor:
        return (decode(module, z) - low) / (high - low)

    with torch.inference_mode():
        scale, multiple, min_side = measure_sizes(run_encoder, 3)
        if scale.numerator != 1:
            raise CheckpointError(f"the latents have {scale} of the size of the image. They must be a whole factor smaller")
        side = max(multiple, min_side, 2 * scale.denominator)
        x = random_images(3, side, 2 * side)
        mode, deviation = encode(module, x * (high - low) + low)
        size = tuple(run_decoder(mode).shape[1:])
        if size != (3, side, 2 * side):
            raise CheckpointError(f"the decoder makes {size} of latents of an image of {(3, side, 2 * side)}: not its size")
        latent = LatentContract(
            channels=mode.shape[1],
            factor=scale.denominator,
            is_distribution=deviation is not None,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        )
        # The decoder reads multiples of what the encoder makes of a tile.
        step = multiple // latent.factor
        tiling, halo, _ = measure_tiling(run_encoder, 3, multiple, scale, min_side)
        if tiling == "exact":
            tiling, latent_halo, _ = measure_tiling(run_decoder, latent.channels, step, 1 / scale)
            halo = max(halo, latent_halo * latent.factor)
    return Contract(
        input_range=input_range,
        size_multiple=multiple,
        min_side=min_side,
        tiling=tiling,
        halo=halo if tiling == "exact" else 0,
        bytes_per_pixel=measure_memory(lambda x: run_decoder(run_encoder(x)), 3, math.lcm(multiple, min_side)),
        latent=latent,
    )
