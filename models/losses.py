"""Losses for training."""

import torch
from torch import Tensor

# The slope d(distortion)/d(rate) of a uniform quantiser of step Δ, in units of Δ² (squared levels a bit): ln2/6 ≈ 0.116 at
# high rate. H.264's reference encoder uses 0.134 (Sullivan and Wiegand 1998), which suits rates near one bit a pixel.
LAMBDA_PER_SQUARED_STEP = 0.134


def psnr_loss(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return the mean over images of 10·log10(MSE), which weighs all noise levels equally (Chen et al. 2021, HINet).

    Args:
        x_hat: (B,C,H,W).
        x: (B,C,H,W) in [0,1].
    """
    mse = (x_hat.float() - x.float()).square().flatten(1).mean(1)
    return 10 * (mse + 1e-8).log10().mean()


def image_loss(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return `psnr_loss` as the figures of `Objective.loss`."""
    loss = psnr_loss(x_hat, x)
    return {"loss": loss, "psnr_db": -loss.detach()}


def laplace_bits(symbols_BCHW: Tensor) -> Tensor:
    """Estimate the bits (B,) of integer symbols with one fitted Laplace distribution for each image and channel.

    An adaptive coder, such as zstd with its tables for each block, needs about as many. Differentiable in the symbols.
    """
    magnitude = symbols_BCHW.abs()
    # For P(k) ∝ θ^|k|, the maximum-likelihood θ follows from the mean magnitude m: m = 2θ/(1-θ²).
    m = magnitude.mean((2, 3), keepdim=True) + 1e-3
    theta = ((1 + m * m).sqrt() - 1) / m
    log_theta = theta.log2()
    log_zero = ((1 - theta) / (1 + theta)).log2()
    return -(log_zero + magnitude * log_theta).sum((1, 2, 3))


def rate_distortion(x_hat: Tensor, x: Tensor, bits_B: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
    """Combine rate and squared error with the Lagrange multiplier of each quantiser step.

    Args:
        x_hat: (B,3,H,W).
        x: (B,3,H,W) in [0,1].
        bits_B: (B,).
        step_B: (B,) in 8-bit levels.

    Returns:
        The loss, and bits a pixel averaged over the batch.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = bits_B / pixels
    squared = ((x_hat.float() - x.float()) * 255).square().flatten(1).sum(1) / pixels
    # Divided by λ, and by step^-1/2 so that coarse steps with few bits contribute to the loss as well.
    loss = (squared / (LAMBDA_PER_SQUARED_STEP * step_B.square()) + bpp) * (step_B / 32).sqrt()
    return loss.mean(), bpp.mean()


def gaussian_noise(x: Tensor, sigma_B: Tensor, generator: torch.Generator) -> Tensor:
    """Return x + N(0, sigma²), not clipped; sigma (B,) has the unit of x.

    torchvision's GaussianNoise has one sigma for a batch and no generator, so it cannot replace this function.
    """
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x + noise * sigma_B.view(-1, 1, 1, 1)
