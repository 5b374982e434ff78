"""Denoise: remove additive Gaussian noise of a given or estimated level."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.unet import UNet
from imagemill.models.autoencoder import Network
from imagemill.models.batches import bytes_to_float, float_to_bytes, round_to_8_bits, to_uint8_batch, to_uint8_images
from imagemill.models.losses import gaussian_noise, image_loss, psnr_loss
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.photo_noise import add_sensor_noise, compress_as_jpeg
from imagemill.models.precision import Precision
from imagemill.models.routes.image_network import DEFAULT_SIGMA, ImageNetwork
from imagemill.models.self_ensemble import run_network
from imagemill.models.tasks.denoise import DenoiseParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tiling import TILE, apply_tiled, tile_side
from imagemill.models.type_checks import require_type

CROP = 384
"""Side of the crops in which the noise level of a large image is estimated, in pixels."""
MAX_TRAINED_SIGMA = 60.0
"""Highest noise level in training, in 8-bit levels."""
MAX_PHOTO_SIGMA = 30.0
"""Highest level of the noise of photographs in training, in 8-bit levels at mid gray."""
GRAY_SHARE = 0.5
"""Share of training crops that are gray, with one plane of noise."""
FILE_SHARE = 0.7
"""Share of noisy training crops that are clipped and rounded to 8 bits, as files are."""
VALIDATION_SIGMA = 25 / 255


class Denoise(Objective, TaskObjective):
    """Train and apply networks that remove noise."""

    trainable_types = (UNet,)
    module_methods = ("forward",)
    network_types = (UNet, ImageNetwork)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the PSNR loss of the image, and for UNet also the absolute error of the noise level, in 8-bit levels."""
        add_noise = add_photo_noise if is_for_photos(model) else add_training_noise
        x, noisy, sigma_B = add_noise(x_BCHW, generator)
        if isinstance(model, ImageNetwork):
            return image_loss(denoise_known(model, noisy, sigma_B), x)
        model = require_type(model, UNet)
        estimate_B = model.noise_level(noisy)
        # Half of the batch is denoised at the estimated level, so that the network tolerates errors of the estimate.
        blind_B = torch.rand(len(x), generator=generator) < 0.5
        level_B = torch.where(blind_B, estimate_B.detach(), sigma_B)
        loss = psnr_loss(model(noisy, level_B), x)
        level_loss = (estimate_B - sigma_B).abs().mean() * 255
        return {"loss": loss + level_loss, "psnr_db": -loss.detach(), "sigma_error": level_loss.detach()}

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the PSNR at sigma 25 of 255; input and output are rounded to 8 bits.

        UNet estimates the level. Another network gets the true level if it takes one.
        """
        noisy, sigma_B = add_validation_noise(model, x_BCHW, generator)
        if isinstance(model, ImageNetwork):
            return {"psnr_db": -float(psnr_loss(round_to_8_bits(denoise_known(model, noisy, sigma_B)), x_BCHW))}
        model = require_type(model, UNet)
        estimate_B = model.noise_level(noisy)
        x_hat = round_to_8_bits(model(noisy, estimate_B))
        return {
            "psnr_db": -float(psnr_loss(x_hat, x_BCHW)),
            "sigma_error": float((estimate_B - sigma_B).abs().mean() * 255),
        }

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images with noise of sigma 25 of 255, and the images that `validate` measures."""
        noisy, sigma_B = add_validation_noise(model, x_BCHW, generator)
        if isinstance(model, ImageNetwork):
            return noisy, denoise_known(model, noisy, sigma_B)
        model = require_type(model, UNet)
        return noisy, model(noisy, model.noise_level(noisy))

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Denoise images at `params.sigma`, or at the level that is estimated for each image.

        An imported network that takes a level estimates none, and gets DEFAULT_SIGMA without `params.sigma`.
        """
        params = require_type(params, DenoiseParams)
        if isinstance(model, ImageNetwork):
            sigma = DEFAULT_SIGMA if params.sigma is None else params.sigma / 255
            results = process_images(model, [sample.rgb for sample in samples], params, precision, sigma)
            level = sigma * 255 if model.takes_noise_level else None
            return [Output(image, columns={"sigma": level}) for image in results]
        model = require_type(model, UNet)
        images = [sample.rgb for sample in samples]
        # Large images stay uint8; each tile is converted to float by itself.
        x = to_uint8_batch(images, model.stride, precision.device)
        with torch.inference_mode():
            if params.sigma is None:
                sigma_B = precision.run(estimate_noise_levels, model, x, samples)
            else:
                sigma_B = x.new_full((len(images),), params.sigma / 255, dtype=torch.float32)
            x_hat = apply_tiled(
                lambda tile: float_to_bytes(run_network(model, bytes_to_float(tile), params, precision, sigma_B)),
                x,
                tile_side(*x.shape[2:]),
                model.halo,
                stride=model.stride,
                in_place=True,
            )
        return [
            Output(image=y[: i.shape[0], : i.shape[1]], columns={"sigma": s * 255})
            for y, i, s in zip(to_uint8_images(x_hat), images, sigma_B.tolist(), strict=True)
        ]


def add_training_noise(x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Change the colours of clean crops, and add noise of random levels.

    Returns:
        The clean crops (B,3,H,W), the noisy ones, and the noise levels (B,) of values in [0,1].
    """
    x = augment_colours(x_BCHW, generator)
    batch = x.shape[0]
    sigma_B = torch.rand(batch, generator=generator) * (MAX_TRAINED_SIGMA / 255)
    noise = torch.randn(x.shape, generator=generator)
    # A gray photograph has one plane of noise, which all three channels repeat.
    gray_B = (torch.rand(batch, generator=generator) < GRAY_SHARE).view(-1, 1, 1, 1)
    x = torch.where(gray_B, x.mean(1, keepdim=True), x)
    noise = torch.where(gray_B, noise[:, :1], noise)
    noisy = x + noise * sigma_B.view(-1, 1, 1, 1)
    # Files are clipped to [0,1] and rounded to 8 bits after the noise was added.
    file_B = (torch.rand(batch, generator=generator) < FILE_SHARE).view(-1, 1, 1, 1)
    return x, torch.where(file_B, round_to_8_bits(noisy), noisy), sigma_B


def add_photo_noise(x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Change the colours of clean crops, and add noise like that of photographs, of random levels.

    Returns:
        The clean crops (B,3,H,W), the noisy ones, and the root mean square (B,) of what was added.
    """
    x = augment_colours(x_BCHW, generator)
    sigma_B = torch.rand(len(x), generator=generator) * (MAX_PHOTO_SIGMA / 255)
    noisy = compress_as_jpeg(add_sensor_noise(x, sigma_B, generator), generator)
    return x, noisy, rms(noisy - x)


def is_for_photos(model: Network) -> bool:
    """Return whether a network is trained for the noise of photographs."""
    return isinstance(model, UNet) and model.noise == "photo"


def add_validation_noise(model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (B,3,H,W) with noise of sigma 25 of 255, rounded to 8 bits, and the noise levels (B,)."""
    sigma_B = x_BCHW.new_full((len(x_BCHW),), VALIDATION_SIGMA)
    if is_for_photos(model):
        noisy = compress_as_jpeg(add_sensor_noise(x_BCHW, sigma_B, generator), generator, share=1)
        return noisy, rms(noisy - x_BCHW)
    return round_to_8_bits(gaussian_noise(x_BCHW, sigma_B, generator)), sigma_B


def rms(x_BCHW: Tensor) -> Tensor:
    """Return the root mean square of each image, (B,)."""
    return x_BCHW.square().mean((1, 2, 3)).sqrt()


def denoise_known(model: ImageNetwork, noisy_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Denoise images whose noise levels (B,) are known, for a network that takes levels."""
    x_hat: Tensor = model(noisy_BCHW, sigma_B if model.takes_noise_level else None)
    return x_hat


def estimate_noise_levels(model: UNet, x_BCHW: Tensor, samples: list[Sample]) -> Tensor:
    """Estimate the noise levels (B,) of samples, as standard deviations of values in [0,1].

    Each image is measured at its own size, because the rows and columns that padding repeats look like pixels with less
    noise. Pixels that transparency hides have interpolated colours without noise, so they are ignored, unless hardly any
    pixel is visible.

    Args:
        model: the denoiser.
        x_BCHW: the batch of the samples, (B,3,H,W) uint8.
        samples: the images with their alpha.
    """
    levels = []
    for x_CHW, sample in zip(x_BCHW, samples, strict=True):
        h, w = sample.rgb.shape[:2]
        x_1CHW = x_CHW[None, :, :h, :w]
        level = estimate_noise_level(model, x_1CHW)
        if sample.alpha is not None and not sample.alpha.all():
            hidden_11HW = torch.from_numpy(sample.alpha == 0).to(x_BCHW.device, torch.uint8)[None, None]
            visible_level = estimate_noise_level(model, x_1CHW, hidden_11HW)
            level = torch.where(visible_level.isnan(), level, visible_level)
        levels.append(level)
    return torch.cat(levels)


def estimate_noise_level(model: UNet, x_BCHW: Tensor, hidden_B1HW: Tensor | None = None) -> Tensor:
    """Estimate the noise levels (B,) of images, as standard deviations of values in [0,1].

    For large images, the result is the median over nine crops, which bounds the memory.

    Args:
        model: the denoiser.
        x_BCHW: (B,3,H,W) uint8, without padding.
        hidden_B1HW: (B,1,H,W) uint8, 1 at pixels to ignore.

    Returns:
        NaN for an image with too few visible pixels.
    """
    h, w = x_BCHW.shape[2:]
    if h * w <= TILE * TILE:
        return model.noise_level(bytes_to_float(x_BCHW), hidden_B1HW)
    levels = []
    for y in np.linspace(0, max(0, h - CROP), 3, dtype=int):
        for x in np.linspace(0, max(0, w - CROP), 3, dtype=int):
            crop = (slice(None), slice(None), slice(y, y + CROP), slice(x, x + CROP))
            hidden = None if hidden_B1HW is None else hidden_B1HW[crop]
            levels.append(model.noise_level(bytes_to_float(x_BCHW[crop]), hidden))
    return torch.stack(levels).nanmedian(0).values


def augment_colours(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the saturation by a random factor of 1 to 2.5 (1 for half of the images), and permute the channels.

    Photographs alone contain too few saturated colours.
    """
    batch = x_BCHW.shape[0]
    saturation_B = torch.rand(batch, generator=generator).mul(3).sub(0.5).clamp(1.0, 2.5).view(-1, 1, 1, 1)
    gray = x_BCHW.mean(1, keepdim=True)
    shifted = (gray + (x_BCHW - gray) * saturation_B).clamp(0, 1)
    return shifted[:, torch.randperm(3, generator=generator)]
