"""Noise like that of photographs: photon and read noise of a sensor, smoothed by demosaicing, then compressed as JPEG.

Photon noise has a variance proportional to the light (Foi et al. 2008). Demosaicing and scaling spread it over neighbours,
and JPEG removes a part of it, so that a network trained for Gaussian noise takes the rest for texture.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

from imagemill.models.batches import round_to_8_bits

GAMMA = 2.2
"""Exponent that approximates the curve of sRGB."""
MID_GRAY = 0.18
"""Linear value at which a noise level is exact."""
MID_GRAY_SLOPE = MID_GRAY ** (1 / GAMMA - 1) / GAMMA
"""Slope of the curve there: deviation in sRGB divided by deviation in linear light."""
PHOTON_SHARE = (0.7, 1.0)
"""Range of the share that photons have in the variance at mid gray; the sensor's electronics add the rest."""
BLUR_RADIUS = (0.0, 0.8)
"""Range of the standard deviation of the blur, in pixels."""
JPEG_QUALITY = (70, 96)
JPEG_SHARE = 0.7
"""Share of training crops that are compressed."""


def add_sensor_noise(x_BCHW: Tensor, sigma_B: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise that is signal-dependent and correlated between neighbours.

    Args:
        x_BCHW: clean images (B,C,H,W) in [0,1], sRGB.
        sigma_B: standard deviation at mid gray, (B,), in the units of x.
        generator: source of all random numbers, on the device of x.

    Returns:
        Noisy images, clipped to [0,1].
    """
    batch = len(x_BCHW)
    share, radius = torch.rand(2, batch, 1, 1, 1, generator=generator, device=x_BCHW.device).unbind()
    share = PHOTON_SHARE[0] + share * (PHOTON_SHARE[1] - PHOTON_SHARE[0])
    radius = BLUR_RADIUS[0] + radius * (BLUR_RADIUS[1] - BLUR_RADIUS[0])
    linear = x_BCHW.clamp(0, 1) ** GAMMA
    variance = (sigma_B.view(-1, 1, 1, 1) / MID_GRAY_SLOPE).square()
    deviation = (variance * (share * linear / MID_GRAY + 1 - share)).sqrt()
    noise = torch.randn(x_BCHW.shape, generator=generator, device=x_BCHW.device)
    noisy = (linear + deviation * blur_noise(noise, radius)).clamp(0, 1)
    return noisy ** (1 / GAMMA)


def blur_noise(noise_BCHW: Tensor, radius_B111: Tensor) -> Tensor:
    """Blur white noise with a Gaussian of 3×3 pixels, a radius for each image, and keep its variance."""
    side = torch.exp(-0.5 / radius_B111.clamp_min(1e-3).square()).view(-1)
    kernel_B3 = torch.stack([side, torch.ones_like(side), side], 1)
    kernel_B33 = kernel_B3[:, :, None] * kernel_B3[:, None]
    kernel_B33 = kernel_B33 / kernel_B33.square().sum((1, 2), keepdim=True).sqrt()
    padded = pad(noise_BCHW.transpose(0, 1), (1, 1, 1, 1), mode="circular")
    return conv2d(padded, kernel_B33[:, None], groups=len(noise_BCHW)).transpose(0, 1)


def compress_as_jpeg(x_BCHW: Tensor, generator: torch.Generator, share: float = JPEG_SHARE) -> Tensor:
    """Round images to 8 bits, and write and read a share of them as JPEG of a random quality.

    Args:
        x_BCHW: images (B,3,H,W) in [0,1].
        generator: source of random numbers.
        share: share of the images that are compressed; the others are only rounded.
    """
    x = round_to_8_bits(x_BCHW)
    draws = torch.rand(2, len(x), generator=generator, device=x.device).tolist()
    for n, (chance, level) in enumerate(zip(*draws, strict=True)):
        if chance < share:
            quality = int(JPEG_QUALITY[0] + level * (JPEG_QUALITY[1] - JPEG_QUALITY[0]))
            rgb = x[n].mul(255).byte().permute(1, 2, 0).cpu().numpy()
            file = io.BytesIO()
            Image.fromarray(rgb).save(file, "JPEG", quality=quality)
            decoded = np.asarray(Image.open(file)).copy()
            x[n] = torch.from_numpy(decoded).permute(2, 0, 1).to(x.device).float().div(255)
    return x
