"""Compress: images to integer latents; what is taken away is precision."""

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.architectures.codec import Codec
from models.autoencoder import Autoencoder
from models.losses import laplace_bits, psnr_loss, rate_distortion
from models.metrics import psnr_db
from models.precision import Precision
from models.tasks.task import Output, Params, Sample, Task, to_batch, to_uint8
from models.tiling import tiled

TILE = 1024
# Below 18 the means of black and white blocks outgrow a symbol: it costs more bits and gives a worse picture.
MIN_STEP, MAX_STEP = 18.0, 128.0


class CompressParams(Params):
    step: float = Field(
        26.0, ge=MIN_STEP, le=MAX_STEP, description="quantiser step in 8-bit levels; larger is smaller and worse"
    )


class Compress(Task):
    name = "compress"
    default_checkpoint = "compress-small"
    Params = CompressParams
    columns = {"step": float, "psnr_db": float, "bits_per_pixel": float}
    stores_latent = True

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(model, Codec)
        draw = torch.rand(x_BCHW.shape[0], generator=generator)
        step_B = MIN_STEP * (MAX_STEP / MIN_STEP) ** draw
        x_hat, bits_B = code(model, x_BCHW, step_B)
        loss, bpp = rate_distortion(x_hat, x_BCHW, bits_B, step_B)
        return {"loss": loss, "bits_per_pixel": bpp.detach(), "psnr_db": -psnr_loss(x_hat, x_BCHW).detach()}

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        assert isinstance(model, Codec)
        step_B = x_BCHW.new_full((x_BCHW.shape[0],), 32.0)
        x_hat, bits_B = code(model, x_BCHW, step_B)
        loss, bpp = rate_distortion(x_hat, x_BCHW, bits_B, step_B)
        rounded = x_hat.clamp(0, 1).mul(255).round().div(255)
        return {"psnr_db": -float(psnr_loss(rounded, x_BCHW)), "bits_per_pixel": float(bpp), "loss": float(loss)}

    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Symbols are computed in float32 whatever the precision: a code must not depend on it."""
        assert isinstance(model, Codec)
        assert isinstance(params, CompressParams)
        images = [sample.rgb for sample in samples]
        x = to_batch(images, model.stride, precision.device)
        step_B = x.new_full((len(images),), params.step)
        with torch.inference_mode():
            symbols = tiled(lambda piece: model.encode(piece, step_B)[0], x, TILE, model.stride, Fraction(1, model.stride))
        latents = symbols.to(torch.int8).cpu().numpy()
        outputs = []
        for latent, image in zip(latents, images, strict=True):
            decoded = decode_latent(model, latent, image.shape[:2], params.step, precision.device)
            outputs.append(Output(decoded, latent, {"step": params.step, "psnr_db": psnr_db(decoded, image)}))
        return outputs


def code(model: Codec, x_B3HW: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
    """What images become at a step, (B,3,H,W), and the bits that they take, (B,)."""
    symbols, _ = model.encode(x_B3HW, step_B)
    return model.decode((symbols, step_B)), laplace_bits(symbols)


def decode_latent(model: Codec, latent: np.ndarray, size: tuple[int, int], step: float, device: str) -> np.ndarray:
    """Symbols (C,h,w) int8 to the image (H,W,3) uint8 of `size`.

    Always float32 and one image at a time, in tiles of one size: these decide the last bit of a result, so the run and a
    later `decode` agree exactly on one kind of device.
    """
    symbols = torch.from_numpy(np.ascontiguousarray(latent))[None].to(device).float()
    step_B = symbols.new_full((1,), step)
    tile, halo = TILE // model.stride, model.halo // model.stride
    with torch.inference_mode():
        x_hat = tiled(lambda piece: model.decode((piece, step_B)), symbols, tile, halo, Fraction(model.stride))
    return to_uint8(x_hat)[0, : size[0], : size[1]]
