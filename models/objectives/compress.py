"""Compress: encode images as quantised latents."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.codec import Codec
from imagemill.models.autoencoder import LatentCoder, Network
from imagemill.models.batches import bytes_to_float, float_to_bytes, round_to_8_bits, to_uint8_batch, to_uint8_images
from imagemill.models.colour import rgb_to_luma
from imagemill.models.entropy_fitting import fit_entropy_model
from imagemill.models.errors import CheckpointError
from imagemill.models.losses import laplace_bits, psnr_loss, rate_distortion
from imagemill.models.metrics import psnr_db, psnr_from_mse, squared_error
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.tasks.compress import MAX_STEP, MIN_STEP, CompressParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tiling import apply_in_fixed_tiles, apply_tiled, compute_tiles, tile_side
from imagemill.models.type_checks import require_type

VALIDATION_STEP = 32.0


class Compress(Objective, TaskObjective):
    """Train and apply networks whose latents are quantised to integers."""

    trainable_type = LatentCoder
    network_types = (LatentCoder,)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute rate and distortion at random steps, or the squared error of a network without a variable rate."""
        model = require_type(model, LatentCoder)
        if not isinstance(model, Codec):
            x = select_planes(model, x_BCHW)
            x_hat = model(x)
            mse = (x_hat.float() - x).square().mean()
            return {"loss": mse, "psnr_db": -psnr_loss(x_hat, x).detach()}
        draw = torch.rand(x_BCHW.shape[0], generator=generator)
        step_B = MIN_STEP * (MAX_STEP / MIN_STEP) ** draw
        x_hat, bits_B = encode_decode(model, x_BCHW, step_B)
        loss, bpp = rate_distortion(x_hat, x_BCHW, bits_B, step_B)
        return {"loss": loss, "bits_per_pixel": bpp.detach(), "psnr_db": -psnr_loss(x_hat, x_BCHW).detach()}

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure PSNR and squared error, and the rate of a codec, at VALIDATION_STEP."""
        model = require_type(model, LatentCoder)
        x = select_planes(model, x_BCHW)
        step_B = x.new_full((x.shape[0],), VALIDATION_STEP)
        x_hat, bits_B = encode_decode(model, x, step_B)
        figures = {"psnr_db": -float(psnr_loss(round_to_8_bits(x_hat), x)), "mse": float((x_hat - x).square().mean())}
        if isinstance(model, Codec):
            loss, bpp = rate_distortion(x_hat, x, bits_B, step_B)
            figures |= {"bits_per_pixel": float(bpp), "loss": float(loss)}
        return figures

    def finish(self, model: Network, images: Iterable[Tensor]) -> None:
        """Fit the entropy tables to the symbols of images, each at a random step."""
        model = require_type(model, LatentCoder)
        rng = np.random.default_rng(0)
        latents = []
        with torch.inference_mode():
            for x_BCHW in images:
                x = select_planes(model, x_BCHW)
                step_B = x.new_full((1,), MIN_STEP * (MAX_STEP / MIN_STEP) ** rng.random())
                latents.append(model.encode_symbols(x, step_B)[0].to(torch.int8).cpu().numpy())
        if latents:
            model.entropy = fit_entropy_model(latents)

    def check(self, model: Network, params: Any) -> None:
        """Check that the checkpoint has entropy tables if the parameters ask for entropy coding.

        Raises:
            CheckpointError: when it has none.
        """
        super().check(model, params)
        model = require_type(model, LatentCoder)
        if params.coding == "coded" and model.entropy is None:
            raise CheckpointError(
                "params.coding='coded': the checkpoint has no entropy tables, because it is from an older version. Set plain"
            )

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images as the network takes them, and their reconstruction at VALIDATION_STEP."""
        model = require_type(model, LatentCoder)
        x = select_planes(model, x_BCHW)
        return x, encode_decode(model, x, x.new_full((x.shape[0],), VALIDATION_STEP))[0]

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Encode images, always in float32, so that symbols do not depend on the precision."""
        model = require_type(model, LatentCoder)
        params = require_type(params, CompressParams)
        images = [sample.rgb for sample in samples]
        latents = encode_images(model, images, params.step, precision.device)
        outputs = []
        for latent, sample in zip(latents, samples, strict=True):
            payload = model.entropy.encode(latent) if params.coding == "coded" and model.entropy else None
            columns: dict[str, Any] = {"step": params.step}
            decoded = None
            if sample.needs_image:
                decoded = decode_latent(model, latent, sample.rgb.shape[:2], params.step, precision.device)
                columns["psnr_db"] = psnr_db(decoded, sample.rgb)
            elif sample.needs_quality:
                columns["psnr_db"] = latent_psnr(model, latent, sample.rgb, params.step, precision.device)
            outputs.append(Output(decoded, latent, columns, payload=payload))
        return outputs


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


def select_planes(model: Any, x_B3HW: Tensor) -> Tensor:
    """Return the planes (B,channels,H,W) that a network takes of RGB images: all three, or luma."""
    return rgb_to_luma(x_B3HW) if model.channels == 1 else x_B3HW


def encode_decode(model: LatentCoder, x_BCHW: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode images (B,C,H,W) at a step; return x_hat (B,C,H,W) and the estimated bits (B,)."""
    symbols = model.encode_symbols(x_BCHW, step_B)
    return model.decode_symbols(symbols, step_B), laplace_bits(symbols)


def decode_latent(model: LatentCoder, latent: np.ndarray, size: tuple[int, int], step: float, device: str) -> np.ndarray:
    """Decode symbols (C,h,w) int8 to the image (H,W,3) uint8 of `size` = (H,W).

    Always in float32, one image at a time, in tiles whose size does not depend on free memory. All of these influence the
    last bit, so that a run and a later `decode` agree exactly on the same kind of device.
    """
    with torch.inference_mode():
        x_hat = apply_in_fixed_tiles(*tile_arguments(model, latent, size, step, device))
    return to_rgb(model, x_hat)[: size[0], : size[1]]


def latent_psnr(model: LatentCoder, latent: np.ndarray, rgb: np.ndarray, step: float, device: str) -> float:
    """Return the PSNR in dB of a decoded latent against its source (H,W,3) uint8, without storing the whole image."""
    squared = 0.0
    with torch.inference_mode():
        for rows, columns, piece in compute_tiles(*tile_arguments(model, latent, rgb.shape[:2], step, device)):
            source = rgb[rows, columns]
            squared += squared_error(to_rgb(model, piece)[: source.shape[0], : source.shape[1]], source)
    return psnr_from_mse(squared / rgb.size)


def tile_arguments(model: LatentCoder, latent: np.ndarray, size: tuple[int, ...], step: float, device: str) -> Any:
    """Return the arguments of `apply_in_fixed_tiles` and `compute_tiles` that decode symbols (C,h,w) int8 to bytes."""
    symbols = torch.from_numpy(np.ascontiguousarray(latent))[None].to(device)
    step_B = torch.full((1,), step, device=symbols.device)
    tile, halo = tile_side(*size) // model.stride, model.halo // model.stride
    return (
        lambda part: float_to_bytes(model.decode_symbols(part.float(), step_B)),
        symbols,
        tile,
        halo,
        Fraction(model.stride),
    )


def to_rgb(model: LatentCoder, x_hat: Tensor) -> np.ndarray:
    """Convert decoded planes (1,C,h,w) uint8 to RGB (h,w,3) uint8; luma becomes gray."""
    decoded = to_uint8_images(x_hat)[0]
    return decoded if model.channels == 3 else decoded.repeat(3, 2)
