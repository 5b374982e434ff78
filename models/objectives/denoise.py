"""Denoise: additive Gaussian noise is taken away; the level is estimated unless it is given."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.unet import UNet
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import bytes_to_float, float_to_bytes, round_to_8_bits, to_uint8_batch, to_uint8_images
from imagemill.models.losses import gaussian_noise, psnr_loss
from imagemill.models.objectives.objective import TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.tasks.denoise import DenoiseParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tiling import TILE, apply_tiled, pad_to_size, tile_side
from imagemill.models.type_checks import require_type

CROP = 384
MAX_TRAINED_SIGMA = 60.0
GRAY_SHARE = 0.5
FILE_SHARE = 0.7


class Denoise(TaskObjective):
    trainable_type = UNet

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """PSNR loss at the true noise level, plus the error of the estimated level in 8-bit levels."""
        model = require_type(model, UNet)
        x = augment_colours(x_BCHW, generator)
        batch = x.shape[0]
        sigma_B = torch.rand(batch, generator=generator) * (MAX_TRAINED_SIGMA / 255)
        noise = torch.randn(x.shape, generator=generator)
        # A gray photograph has one noise plane, seen three times.
        gray_B = (torch.rand(batch, generator=generator) < GRAY_SHARE).view(-1, 1, 1, 1)
        x = torch.where(gray_B, x.mean(1, keepdim=True), x)
        noise = torch.where(gray_B, noise[:, :1], noise)
        noisy = x + noise * sigma_B.view(-1, 1, 1, 1)
        # What lies in a file was cut to [0,1] and rounded to 8 bits after the noise came.
        file_B = (torch.rand(batch, generator=generator) < FILE_SHARE).view(-1, 1, 1, 1)
        noisy = torch.where(file_B, round_to_8_bits(noisy), noisy)
        estimate_B = model.noise_level(noisy)
        # Half of the batch is denoised at the estimated level, so that the network forgives the estimate's errors.
        blind_B = torch.rand(batch, generator=generator) < 0.5
        level_B = torch.where(blind_B, estimate_B.detach(), sigma_B)
        image_loss = psnr_loss(model(noisy, level_B), x)
        level_loss = (estimate_B - sigma_B).abs().mean() * 255
        return {"loss": image_loss + level_loss, "psnr_db": -image_loss.detach(), "sigma_error": level_loss.detach()}

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Blind, at sigma 25 of 255, on what an 8-bit file keeps of the noisy image; rounded to 8 bits as an output is."""
        model = require_type(model, UNet)
        sigma_B = torch.full((x_BCHW.shape[0],), 25 / 255)
        noisy = round_to_8_bits(gaussian_noise(x_BCHW, sigma_B, generator))
        estimate_B = model.noise_level(noisy)
        x_hat = round_to_8_bits(model(noisy, estimate_B))
        return {
            "psnr_db": -float(psnr_loss(x_hat, x_BCHW)),
            "sigma_error": float((estimate_B - sigma_B).abs().mean() * 255),
        }

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Blind, at sigma 25 of 255."""
        model = require_type(model, UNet)
        noisy = gaussian_noise(x_BCHW, x_BCHW.new_full((x_BCHW.shape[0],), 25 / 255), generator)
        return noisy, model(noisy, model.noise_level(noisy))

    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        model = require_type(model, UNet)
        params = require_type(params, DenoiseParams)
        images = [sample.rgb for sample in samples]
        # Large images stay bytes; each tile is made float by itself.
        x = to_uint8_batch(images, model.stride, precision.device)
        with torch.inference_mode():
            if params.sigma is None:
                sigma_B = precision.run(estimate_noise_levels, model, x, samples)
            else:
                sigma_B = x.new_full((len(images),), params.sigma / 255, dtype=torch.float32)
            x_hat = apply_tiled(
                lambda piece: float_to_bytes(precision.run(model, bytes_to_float(piece), sigma_B)),
                x,
                tile_side(*x.shape[2:]),
                model.halo,
                stride=model.stride,
                in_place=True,
            )
        restored = to_uint8_images(x_hat)
        return [
            Output(image=r[: i.shape[0], : i.shape[1]], columns={"sigma": s * 255})
            for r, i, s in zip(restored, images, sigma_B.tolist(), strict=True)
        ]


def estimate_noise_levels(model: UNet, x_BCHW: Tensor, samples: list[Sample]) -> Tensor:
    """Estimate the (B,) noise levels, in units of 1, of samples whose batch is x (B,3,H,W) uint8.

    Pixels that transparency hides have interpolated colours without noise: they are left out, unless hardly any pixel is
    visible.
    """
    hidden = [sample.alpha is not None and not sample.alpha.all() for sample in samples]
    sigma_B = estimate_noise_level(model, x_BCHW)
    for at in np.flatnonzero(hidden):
        alpha = torch.from_numpy(samples[at].alpha)
        hidden_B1HW = pad_to_size((alpha == 0).to(x_BCHW.device, torch.uint8)[None, None], *x_BCHW.shape[2:])
        visible_sigma_B = estimate_noise_level(model, x_BCHW[at : at + 1], hidden_B1HW)
        sigma_B[at] = torch.where(visible_sigma_B[0].isnan(), sigma_B[at], visible_sigma_B[0])
    return sigma_B


def estimate_noise_level(model: UNet, x_BCHW: Tensor, hidden_B1HW: Tensor | None = None) -> Tensor:
    """Estimate the (B,) noise level, in units of 1, of images (B,3,H,W) uint8; of large ones the median over nine crops.

    Crops bound the memory that it takes. NaN for images of which `hidden_B1HW` (uint8, 1 where hidden) hides too much.
    """
    h, w = x_BCHW.shape[2:]
    if h * w <= TILE * TILE:
        size = h + -h % model.stride, w + -w % model.stride
        hidden = None if hidden_B1HW is None else pad_to_size(hidden_B1HW, *size)
        return model.noise_level(bytes_to_float(pad_to_size(x_BCHW, *size)), hidden)
    levels = []
    for y in np.linspace(0, max(0, h - CROP), 3, dtype=int):
        for x in np.linspace(0, max(0, w - CROP), 3, dtype=int):
            crop = (slice(None), slice(None), slice(y, y + CROP), slice(x, x + CROP))
            levels.append(
                model.noise_level(bytes_to_float(x_BCHW[crop]), None if hidden_B1HW is None else hidden_B1HW[crop])
            )
    return torch.stack(levels).nanmedian(0).values


def augment_colours(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Scale saturation by 1 to 2.5, that of half of the images by 1, and permute the channels.

    Photographs alone teach too little of saturated colours.
    """
    batch = x_BCHW.shape[0]
    saturation_B = torch.rand(batch, generator=generator).mul(3).sub(0.5).clamp(1.0, 2.5).view(-1, 1, 1, 1)
    gray = x_BCHW.mean(1, keepdim=True)
    shifted = (gray + (x_BCHW - gray) * saturation_B).clamp(0, 1)
    return shifted[:, torch.randperm(3, generator=generator)]
