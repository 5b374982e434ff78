"""Reduce the numbers of many images to what a page draws: histograms, bars over runs, a scatter plot of latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 24
LOGARITHMIC_RANGE = 30.0
"""Values with a larger ratio of largest to smallest get a logarithmic axis."""
TAIL, ROOM = 10.0, 1.0
"""A scatter plot shows the values between the percentiles TAIL and 100 − TAIL, and ROOM times their distance on either side.
Nearly all normally distributed values lie inside (±3.8 standard deviations)."""


@dataclass(frozen=True)
class Histogram:
    """The distribution of a column."""

    name: str
    counts: list[int]
    """In BINS equal steps from the smallest to the largest value, or of their logarithms if `logarithmic`."""
    least: float
    median: float
    largest: float
    logarithmic: bool = False


def histogram(name: str, values: np.ndarray) -> Histogram | None:
    """Return the histogram of the finite values (n,) of a column; None if there are none."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return None
    least, largest = float(values.min()), float(values.max())
    logarithmic = least > 0 and largest / least > LOGARITHMIC_RANGE
    position = np.log(values) if logarithmic else values
    # np.histogram fails for values whose differences are below their precision.
    position = (position - position.min()) / max(float(np.ptp(position)), np.finfo(float).tiny)
    counts = np.bincount(np.minimum((position * BINS).astype(int), BINS - 1), minlength=BINS)
    return Histogram(name, counts.tolist(), least, float(np.median(values)), largest, logarithmic)


@dataclass(frozen=True)
class Trend:
    """One figure of the last runs, oldest first."""

    name: str
    runs: list[str]
    values: list[float | None]
    """None for a run that does not have the figure."""
    bad: list[float]
    """The part of each value that is drawn red."""


@dataclass(frozen=True)
class Projection:
    """Latents as points of a scatter plot; similar latents are close to each other."""

    names: list[str]
    x: list[float]
    """First principal component, in [0, 1], in the same scale as `y`."""
    y: list[float]
    shade: list[float]
    """Rank by the quality column, in [0, 1]."""
    explained: float
    """Share of the variance that both components explain."""
    outside: list[bool]
    """Whether a point lies outside the plot and is drawn at its edge."""


def summarize_latent(latent: np.ndarray) -> np.ndarray:
    """Return the mean and log2(1 + mean magnitude) of each channel, (2C,), of a latent (C,h,w)."""
    channels = latent.reshape(latent.shape[0], -1).astype(np.float32)
    return np.concatenate([channels.mean(1), np.log2(1 + np.abs(channels).mean(1))])


def principal_components(features: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal components of features.

    Args:
        features: (N,D).
        most: the largest number of components.

    Returns:
        The coordinates (N,A), 2 ≤ A ≤ `most`, and the share of the variance of each component.
    """
    centered = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    # The eigenvectors of the smaller product take a tenth of the time of a singular value decomposition.
    is_wide = centered.shape[0] < centered.shape[1]
    variances, vectors = np.linalg.eigh(centered @ centered.T if is_wide else centered.T @ centered)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    count = min(most, len(variances))
    axes = np.zeros((len(features), max(2, count)))
    axes[:, :count] = vectors[:, :count] * np.sqrt(variances[:count]) if is_wide else centered @ vectors[:, :count]
    return axes, np.concatenate([variances / max(float(variances.sum()), 1e-12), [0.0, 0.0]])


def clip_outliers(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move points that lie far from most others to the edge, so that a few of them do not squash the rest into a corner.

    Args:
        positions: (N,2).

    Returns:
        The moved points (N,2), and which ones were moved, (N,) bool. An axis on which nearly all points are equal is kept.
    """
    # Interpolated percentiles of few points would depend on the outliers.
    low = np.percentile(positions, TAIL, axis=0, method="higher")
    high = np.percentile(positions, 100 - TAIL, axis=0, method="lower")
    room = np.where(high > low, ROOM * (high - low), np.inf)
    clipped = np.clip(positions, low - room, high + room)
    return clipped, (clipped != positions).any(1)


def project_latents(names: Sequence[str], features: np.ndarray, quality: np.ndarray) -> Projection:
    """Return the scatter plot of latents.

    Args:
        names: of the images (n), at least 3.
        features: (n,D); each column is divided by its standard deviation.
        quality: (n,), decides the shade; images without a value (NaN) are the palest.
    """
    components, share = principal_components(features / np.maximum(features.std(0), 1e-6), 2)
    xy, outside = clip_outliers(components)
    span = max(float(np.ptp(xy[:, 0])), float(np.ptp(xy[:, 1])), 1e-9)
    xy = (xy - xy.min(0)) / span
    shade = np.argsort(np.argsort(np.nan_to_num(quality, nan=-np.inf))) / max(1, len(quality) - 1)
    shade[np.isnan(quality)] = 0.0
    x, y = xy.T.tolist()
    return Projection(list(names), x, y, shade.tolist(), float(share[:2].sum()), outside.tolist())
