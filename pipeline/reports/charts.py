"""Numbers of many images as what a page draws: histograms, bars over time, a plane that shows how latents lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 24
WIDE = 30.0
"""Values whose largest is so many times their least are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Histogram:
    """How values are spread."""

    name: str
    counts: list[int]
    """In BINS equal steps from the least to the largest value, of their logarithm where `logarithmic`."""
    least: float
    median: float
    largest: float
    logarithmic: bool = False


def histogram(name: str, values: np.ndarray) -> Histogram | None:
    """Values (n,) of any number type; those that are not finite are left out, None when nothing is left."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return None
    least, largest = float(values.min()), float(values.max())
    logarithmic = least > 0 and largest / least > WIDE
    placed = np.log(values) if logarithmic else values
    # By hand: numpy's own refuses values that are too near each other for their size.
    placed = (placed - placed.min()) / max(float(np.ptp(placed)), np.finfo(float).tiny)
    counts = np.bincount(np.minimum((placed * BINS).astype(int), BINS - 1), minlength=BINS)
    return Histogram(name, counts.tolist(), least, float(np.median(values)), largest, logarithmic)


@dataclass(frozen=True)
class Trend:
    """One figure of the last runs, oldest first."""

    name: str
    runs: list[str]
    values: list[float | None]
    """None where a run has no such figure."""
    bad: list[float]
    """Of `values` the part that ended badly."""


@dataclass(frozen=True)
class Projection:
    """Latents as points, those that are alike near each other."""

    names: list[str]
    x: list[float]
    """In [0,1], as `y`: the first two principal components, in one scale."""
    y: list[float]
    shade: list[float]
    """In [0,1]: where each stands in the order of the quality column."""
    explained: float
    """The share of the variance that the two components have."""


def summarize_latent(symbols: np.ndarray) -> np.ndarray:
    """What is alike in images of any size: of a latent (C,h,w) int8 each channel's mean and log2(1 + mean size), (2C,)."""
    wide = symbols.reshape(symbols.shape[0], -1).astype(np.float32)
    return np.concatenate([wide.mean(1), np.log2(1 + np.abs(wide).mean(1))])


def principal_components(features: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N,A) of features along their main axes, 2 ≤ A ≤ most, and the share of the variance of every axis."""
    left, spread, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    share = spread**2 / max(float((spread**2).sum()), 1e-12)
    axes = np.zeros((len(features), max(2, min(most, len(spread)))))
    axes[:, : min(most, len(spread))] = (left * spread)[:, :most]
    return axes, np.concatenate([share, [0.0, 0.0]])


def project_latents(names: Sequence[str], features: np.ndarray, quality: np.ndarray) -> Projection:
    """PCA of features (n,d), each column in units of its deviation; n ≥ 3.

    Args: quality: (n,), what the points are shaded by; those that are not measured (NaN) are the palest.
    """
    xy, share = principal_components(features / np.maximum(features.std(0), 1e-6), 2)
    span = max(float(np.ptp(xy[:, 0])), float(np.ptp(xy[:, 1])), 1e-9)
    xy = (xy - xy.min(0)) / span
    shade = np.argsort(np.argsort(np.nan_to_num(quality, nan=-np.inf))) / max(1, len(quality) - 1)
    shade[np.isnan(quality)] = 0.0
    return Projection(list(names), xy[:, 0].tolist(), xy[:, 1].tolist(), shade.tolist(), float(share[:2].sum()))
