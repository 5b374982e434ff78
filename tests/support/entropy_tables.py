"""Tables of the entropy coder with random content, and symbols like those of a photo."""

import numpy as np
import torch

from imagemill.models.entropy import PASSES, PHASES, REACH, EntropyModel
from imagemill.models.entropy_fitting import quantise_counts


def tables(channels: int, seed: int, buckets: int = 5, levels: int = 3) -> EntropyModel:
    """Return valid tables with random content; those of older versions have no levels."""
    rng = np.random.default_rng(seed)
    whole = {
        "sizes": rng.integers(0, 113, 129).astype(np.int16),
        "weights": rng.integers(-2000, 2001, (2, len(PASSES), channels * (channels + 1) // 2, 9)).astype(np.int16),
        "bias": rng.integers(-9999, 9999, (len(PASSES), channels)).astype(np.int32),
        "edges": np.sort(rng.integers(-(10**5), 10**5, buckets - 1)).astype(np.int32),
        "tables": quantise_counts(rng.random((buckets * max(1, levels) * 2 * PHASES, 2 * REACH + 1)) ** 4 + 1e-9),
    }
    if levels:
        whole["levels"] = np.sort(rng.integers(0, 113, (buckets, levels - 1))).astype(np.int16)
    return EntropyModel(**{name: torch.from_numpy(value) for name, value in whole.items()})


def photo_like(channels: int = 6, side: int = 24, seed: int = 0) -> np.ndarray:
    """Return symbols (C,h,w) int8 like those of a photo: neighbours are similar, and later channels are smaller."""
    rng = np.random.default_rng(seed)
    spread = np.kron(rng.gamma(1.0, 4.0, (side // 4, side // 4)), np.ones((4, 4)))
    decay = 0.6 ** np.arange(channels)[:, None, None]
    return np.rint(rng.laplace(0, 1, (channels, side, side)) * spread * decay).clip(-127, 127).astype(np.int8)
