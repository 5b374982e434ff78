"""Latents of many images to one vector each."""

from collections.abc import Callable

import numpy as np

GEM_POWER = 3.0
"""Where Radenović et al. begin, and what fixed GeM is used with most."""
EPSILON = 1e-6


def mean(latents: np.ndarray) -> np.ndarray:
    """(N,C,h,w) float32 to the mean of each channel, (N,C)."""
    pooled: np.ndarray = latents.mean((2, 3))
    return pooled


def gem(latents: np.ndarray) -> np.ndarray:
    """(N,C,h,w) float32 to the generalised mean of each channel's magnitudes, (N,C).

    Radenović, Tolias and Chum 2018 (Fine-tuning CNN Image Retrieval with No Human Annotation), with p = 3; their features
    are never negative, and so are their own magnitudes.
    """
    pooled: np.ndarray = (np.maximum(np.abs(latents), EPSILON) ** GEM_POWER).mean((2, 3)) ** (1 / GEM_POWER)
    return pooled


def flatten(latents: np.ndarray) -> np.ndarray:
    """(N,C,h,w) float32 as it is, (N,C·h·w): for images of one size, place by place."""
    return latents.reshape(len(latents), -1)


POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"flatten": flatten, "gem": gem, "mean": mean}
