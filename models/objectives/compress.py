"""Compress: encode images as latents, quantised to integers or as floats."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.codec import Codec
from imagemill.models.autoencoder import LatentCoder, Network
from imagemill.models.batches import round_to_8_bits
from imagemill.models.entropy_fitting import fit_entropy_model
from imagemill.models.errors import CheckpointError
from imagemill.models.latents import decode_latent, encode_images, encode_values, latent_psnr, select_planes
from imagemill.models.losses import laplace_bits, psnr_loss, rate_distortion
from imagemill.models.metrics import psnr_db
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.tasks.compress import MAX_STEP, MIN_STEP, CompressParams
from imagemill.models.tasks.task import Output, Sample, SampleError
from imagemill.models.type_checks import require_type

VALIDATION_STEP = 32.0
KL_WEIGHT = 1e-6
"""Weight of the divergence of an image's distributions, when the weight of the squared error of its values is 1."""


class Compress(Objective, TaskObjective):
    """Train and apply networks whose latents are quantised to integers."""

    trainable_types = (LatentCoder,)
    module_methods = ("encode", "decode")
    network_types = (LatentCoder, FloatCoder)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute rate and distortion at random steps, or the squared error of a network without a variable rate."""
        if isinstance(model, FloatCoder):
            return reconstruction_loss(model, x_BCHW, generator)
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
        if isinstance(model, FloatCoder):
            x, x_hat = self.preview(model, x_BCHW, generator)
            return distortion(x_hat, x)
        model = require_type(model, LatentCoder)
        x = select_planes(model, x_BCHW)
        step_B = x.new_full((x.shape[0],), VALIDATION_STEP)
        x_hat, bits_B = encode_decode(model, x, step_B)
        figures = distortion(x_hat, x)
        if isinstance(model, Codec):
            loss, bpp = rate_distortion(x_hat, x, bits_B, step_B)
            figures |= {"bits_per_pixel": float(bpp), "loss": float(loss)}
        return figures

    def finish(self, model: Network, images: Iterable[Tensor]) -> None:
        """Fit the entropy tables to the symbols of images, each at a random step. Float latents have none."""
        if isinstance(model, FloatCoder):
            return
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
        """Check that the network makes latents, and has tables for entropy coding if the parameters ask for it.

        Raises:
            CheckpointError: when one of these does not hold.
        """
        super().check(model, params)
        params = require_type(params, CompressParams)
        if isinstance(model, LatentCoder) and params.coding == "coded" and model.entropy is None:
            raise CheckpointError(
                "params.coding='coded': the checkpoint has no entropy tables, because it is from an older version. Set plain"
            )

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images as the network takes them, and their reconstruction, for symbols at VALIDATION_STEP."""
        if isinstance(model, FloatCoder):
            x = select_planes(model, x_BCHW)
            return x, model(x)
        model = require_type(model, LatentCoder)
        x = select_planes(model, x_BCHW)
        return x, encode_decode(model, x, x.new_full((x.shape[0],), VALIDATION_STEP))[0]

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Encode images. Symbols are computed in float32, so that they do not depend on the precision.

        Raises:
            SampleError: when a latent has a value that its type cannot hold.
        """
        params = require_type(params, CompressParams)
        images, device = [sample.rgb for sample in samples], precision.device
        step = None
        if isinstance(model, FloatCoder):
            seeds = [sample.seed for sample in samples] if params.latents == "sample" else None
            latents = round_values(encode_values(model, images, seeds, precision), params.latent_dtype)
        else:
            model, step = require_type(model, LatentCoder), params.step
            latents = encode_images(model, images, step, device)
        outputs = []
        for latent, sample in zip(latents, samples, strict=True):
            payload = None
            if isinstance(model, LatentCoder) and model.entropy and params.coding == "coded":
                payload = model.entropy.encode(latent)
            columns: dict[str, Any] = {} if step is None else {"step": step}
            decoded = None
            if sample.needs_image:
                decoded = decode_latent(model, latent, sample.rgb.shape[:2], step, device)
                columns["psnr_db"] = psnr_db(decoded, sample.rgb)
            elif sample.needs_quality:
                columns["psnr_db"] = latent_psnr(model, latent, sample.rgb, step, device)
            outputs.append(Output(decoded, latent, columns, payload=payload))
        return outputs


def round_values(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round latents (B,C,h,w) float32 to a dtype.

    Raises:
        SampleError: when a value is not finite, or too large for float16.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    if not np.isfinite(values).all():
        raise SampleError("NotFinite", "the latent has values that are not finite numbers. Compute in float32")
    if not np.isfinite(rounded).all():
        raise SampleError("NotFinite", f"the latent has values above the range of {dtype}. Set --latent-dtype float32")
    return rounded


def reconstruction_loss(model: FloatCoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Compute the squared error of reconstructions, and the distance of distributions to the normal distribution.

    A network that returns distributions decodes samples of them, and its loss contains KL_WEIGHT times their
    Kullback-Leibler divergence (Rombach et al. 2022, KL-regularised autoencoders).
    """
    x = select_planes(model, x_BCHW)
    mode, deviation = model.distribution(x)
    loss = x.new_zeros(())
    if deviation is not None:
        variance = deviation.float().square()
        divergence = (mode.float().square() + variance - 1 - variance.clamp(min=1e-12).log()).sum() / 2
        loss = KL_WEIGHT * divergence / x.numel()
        mode = mode + deviation * torch.randn(mode.shape, generator=generator)
    x_hat = model.decode(mode)
    return {"loss": loss + (x_hat.float() - x).square().mean(), "psnr_db": -psnr_loss(x_hat, x).detach()}


def distortion(x_hat: Tensor, x: Tensor) -> dict[str, float]:
    """Return the PSNR after rounding to 8 bits, and the squared error."""
    return {"psnr_db": -float(psnr_loss(round_to_8_bits(x_hat), x)), "mse": float((x_hat - x).square().mean())}


def encode_decode(model: LatentCoder, x_BCHW: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode images (B,C,H,W) at a step; return x_hat (B,C,H,W) and the estimated bits (B,)."""
    symbols = model.encode_symbols(x_BCHW, step_B)
    return model.decode_symbols(symbols, step_B), laplace_bits(symbols)
