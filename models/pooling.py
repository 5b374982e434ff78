"""Pool the latent of each image to one vector."""

from collections.abc import Callable

import numpy as np

GEM_POWER = 3.0
"""The initial value of Radenović et al., and the usual value of GeM with a fixed exponent."""
EPSILON = 1e-6


def mean(latents: np.ndarray) -> np.ndarray:
    """Return the mean of each channel, (N,C), of latents (N,C,h,w) float32."""
    pooled: np.ndarray = latents.mean((2, 3))
    return pooled


def gem(latents: np.ndarray) -> np.ndarray:
    """Return the generalised mean (p = 3) of each channel's magnitudes, (N,C), of latents (N,C,h,w) float32.

    Radenović, Tolias and Chum 2018, Fine-tuning CNN Image Retrieval with No Human Annotation. Their features are never
    negative; latents are, so their magnitudes are used.
    """
    pooled: np.ndarray = (np.maximum(np.abs(latents), EPSILON) ** GEM_POWER).mean((2, 3)) ** (1 / GEM_POWER)
    return pooled


def flatten(latents: np.ndarray) -> np.ndarray:
    """Flatten latents (N,C,h,w) float32 of images of one size to (N,C·h·w)."""
    return latents.reshape(len(latents), -1)


POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"flatten": flatten, "gem": gem, "mean": mean}
