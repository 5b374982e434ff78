"""Fit an EntropyModel to latents: least squares for the expected values, counts for the distribution around them."""

from collections.abc import Sequence

import numpy as np
import torch

from imagemill.models.entropy import EXACT_LIMIT, FRACTION_BITS, KNOWN_NEIGHBOURS, PASSES, PHASES, REACH, TOTAL, EntropyModel

LOG_SCALE = 16
"""A magnitude contributes 16·log2(1+|s|), so that errors of small and large ones are similar, as least squares needs."""
BUCKETS, FINEST, COARSEST = 40, 0.25, 90.0
"""Buckets of expected magnitudes have geometric boundaries, in units of 1/LOG_SCALE."""
LEVEL_SAMPLE = 8
"""One latent of this many decides about the levels."""
WINDOW = 16
"""Side of the square of each latent that enters the least squares; more positions of one image add little."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the symbols of a bucket below each boundary of its levels."""
PRIOR, LEVEL_PRIOR = 8.0, 100.0
"""Weight of a bucket's common distribution in its rows, and of a row of all levels in each level, in symbols."""


def fit_entropy_model(latents: Sequence[np.ndarray], seed: int = 0) -> EntropyModel:
    """Fit the tables to symbols (C,h,w) int8 of training images, whose quantiser steps cover the useful range."""
    sizes = np.rint(LOG_SCALE * np.log2(1 + np.arange(129)))
    weights, bias = fit_linear_predictors(latents, sizes, np.random.default_rng(seed))
    edges = np.rint(np.geomspace(FINEST, COARSEST, BUCKETS - 1) * 2**FRACTION_BITS).astype(np.int32)

    def build(levels: np.ndarray, tables: np.ndarray) -> EntropyModel:
        arrays = (sizes.astype(np.int16), weights, bias, edges, tables, levels.astype(np.int16))
        return EntropyModel(*map(torch.from_numpy, arrays))

    # With one level for each magnitude, counts also tell the distribution of the largest neighbour in each bucket.
    magnitudes = np.tile(np.arange(sizes.max()), (BUCKETS, 1))
    counts = count_symbols(build(magnitudes, uniform_tables(BUCKETS * (magnitudes.shape[1] + 1))), latents[::LEVEL_SAMPLE])
    levels = choose_levels(counts.sum((2, 3)))
    counts = count_symbols(build(levels, uniform_tables(BUCKETS * (levels.shape[1] + 1))), latents)
    return build(levels, smooth_counts(counts))


def uniform_tables(contexts: int) -> np.ndarray:
    """Return valid `tables` with equal distances, for counting."""
    return np.repeat(quantise_counts(np.ones((1, 2 * REACH + 1))), contexts * 2 * PHASES, 0)


def count_symbols(model: EntropyModel, latents: Sequence[np.ndarray]) -> np.ndarray:
    """Count the distances from the centre in each context, (S,L,2·8,41)."""
    counts = np.zeros(model.tables.shape, np.int64)

    def count(rows: np.ndarray, centres: np.ndarray, expected: np.ndarray) -> np.ndarray:
        np.add.at(counts, (rows, (expected - centres).clip(-REACH, REACH) + REACH), 1)
        return expected

    for latent in latents:
        model.walk(latent.astype(np.int16), count)
    return counts.reshape(BUCKETS, -1, 2 * PHASES, 2 * REACH + 1)


def choose_levels(counts: np.ndarray) -> np.ndarray:
    """Return `levels`, given the number of symbols (S,n) by bucket and magnitude of the largest neighbour."""
    shares = np.cumsum(counts, 1) / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.stack([(shares < share).sum(1) for share in SHARES], 1).clip(max=counts.shape[1] - 1)


def fit_linear_predictors(
    latents: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fit `weights` and `bias` of an EntropyModel, which predict magnitude and value of a symbol from known symbols."""
    channels = latents[0].shape[0]
    gram = np.zeros((2, channels * 9 + 1, channels * 9 + 1))
    positions = 0
    for latent in latents:
        padded = np.pad(latent.astype(np.int16), ((0, 0), (1, 1), (1, 1)))
        y, x = (int(rng.integers(max(0, n - WINDOW) + 1)) for n in latent.shape[1:])
        padded = padded[:, y : y + WINDOW + 2, x : x + WINDOW + 2]
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).transpose(0, 3, 4, 1, 2)
        flat = around.reshape(channels * 9, -1)
        for total, features in zip(gram, (sizes[np.abs(flat)], flat), strict=True):
            with_one = np.vstack([features, np.ones((1, flat.shape[1]))]).astype(np.float32)
            total += with_one @ with_one.T
        positions += flat.shape[1]
    gram /= positions
    weights = np.zeros((2, len(PASSES), channels, channels, 9))
    bias = np.zeros((len(PASSES), channels))
    for p, own in enumerate(KNOWN_NEIGHBOURS):
        for channel in range(channels):
            known = np.r_[np.arange(channel * 9), channel * 9 + np.array(own, int)]
            for kind, columns in enumerate((np.r_[known, channels * 9], known)):
                # Both signs are equally likely, so the value has no bias.
                system = gram[kind][np.ix_(columns, columns)]
                # The ridge halves a solution with as many unknowns as positions, and hardly changes a well-determined one.
                system = system + np.diag(len(columns) / positions * np.diag(system) + 1e-9)
                answer = np.linalg.solve(system, gram[kind][columns, channel * 9 + 4])
                weights[kind, p, channel].reshape(-1)[known] = answer[: len(known)]
                if kind == 0:
                    bias[p, channel] = answer[-1]
    # A few images can give extreme weights, but sums must stay exact.
    reach = np.abs(weights).sum((3, 4)) * np.array([sizes.max(), 128])[:, None, None] + np.abs(bias)
    within = np.minimum(1, 0.9 * EXACT_LIMIT / 2**FRACTION_BITS / np.maximum(reach, 1e-9))
    weights, bias = weights * within[..., None, None], bias * within[0]
    lower = np.tril_indices(channels)
    whole = np.rint(weights[:, :, *lower] * 2**FRACTION_BITS).clip(-(2**15), 2**15 - 1)
    return whole.astype(np.int16), np.rint(bias * 2**FRACTION_BITS).astype(np.int32)


def smooth_counts(counts: np.ndarray) -> np.ndarray:
    """Smooth counts (S,L,2·8,41) to `tables`.

    Rare rows use the counts of all levels, then those of their bucket, and rare distances a slow decay.
    """
    decay = 0.5 ** (np.abs(np.arange(-REACH, REACH + 1)) / 4)
    bucket = counts.sum((1, 2)) + 0.01 * decay
    common = (bucket / bucket.sum(1, keepdims=True))[:, None]
    rows = counts.sum(1) + PRIOR * common
    rows = (rows / rows.sum(2, keepdims=True))[:, None]
    return quantise_counts((counts + LEVEL_PRIOR * rows).reshape(-1, 2 * REACH + 1))


def quantise_counts(weights: np.ndarray) -> np.ndarray:
    """Round positive weights (rows,n) to integers of at least 1 whose rows sum to TOTAL, int32."""
    share = weights / weights.sum(1, keepdims=True)
    counts = np.floor(share * (TOTAL - share.shape[1])).astype(np.int64) + 1
    counts[np.arange(len(counts)), share.argmax(1)] += TOTAL - counts.sum(1)
    return counts.astype(np.int32)
