"""A collection on a plane: where each image lies, which belong together, which are alone."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from imagemill.models.likeness import choose_whitening, similarity
from imagemill.pipeline.errors import ConfigError, VerificationError, first_of
from imagemill.pipeline.output.neighbours import Collection
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.reports.charts import principal_components

MOST_IMAGES, MOST_PARTS = 1_500, 150
"""Of a map; of a larger collection a sample is drawn, from so many parts at most."""
MOST_CLUSTERS, AXES, NEAR = 10, 32, 4
LEAST_FOR_UMAP = 5


@dataclass(frozen=True)
class ImageMap:
    """Images of a map, by their place in `rows`."""

    rows: list[dict[str, Any]]
    places: np.ndarray
    """(N,2) float in [0,1]."""
    method: str
    """How the places came about, in words."""
    cluster: np.ndarray
    """(N,) from 0, the largest first."""
    typical: list[int]
    """For each cluster the image in its middle."""
    near: np.ndarray
    """(N,≤4) the images most like each."""
    alike: np.ndarray
    """(N,) similarity to the most like one; 0 where there is no other."""


def draw_sample(state: Snapshot, most: int = MOST_IMAGES, parts: int = MOST_PARTS) -> Snapshot:
    """At most so many images of a snapshot, drawn at random from so many of its parts; the same ones each time."""
    if len(state) <= most:
        return state
    rng = np.random.default_rng(0)
    there = np.unique(state.part)
    chosen = rng.choice(there, min(parts, len(there)), replace=False)
    among = np.flatnonzero(np.isin(state.part, chosen))
    keep = np.zeros(len(state), bool)
    keep[rng.choice(among, min(most, len(among)), replace=False)] = True
    return state.select(keep)


def build_map(these: Collection, columns: list[str], method: str, problems: list[str]) -> ImageMap:
    """The map of a collection.

    Raises: ConfigError for a method that is unknown, not installed, or wants more images;
        VerificationError where no latent is what was written.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}; valid: {', '.join(METHODS)}")
    drawn = these.with_state(draw_sample(these.state))
    batches = list(
        with_progress("map: read latents", drawn.features(columns, problems), len(drawn.state), lambda batch: len(batch[0]))
    )
    if not batches:
        raise VerificationError(f"{these.state.output.url}: no latent is what was written: {first_of(problems)}")
    features = np.concatenate([found for _, found in batches])
    rows = [row for table, _ in batches for row in table.to_pylist()]
    vectors = choose_whitening(these.coder, features)(features)
    alike = similarity(vectors, vectors)
    np.fill_diagonal(alike, -np.inf)
    near = np.argsort(-alike, axis=1, kind="stable")[:, : min(NEAR, len(rows) - 1)]
    axes, share = principal_components(features, AXES)
    places, words = METHODS[method](axes, share)
    low, high = places.min(0), places.max(0)
    places = np.where(high > low, (places - low) / np.where(high > low, high - low, 1), 0.5)
    cluster, typical = find_clusters(axes)
    return ImageMap(rows, places, words, cluster, typical, near, np.maximum(alike.max(1), 0))


def place_by_pca(axes: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, str]:
    return axes[:, :2], f"PCA: both axes together hold {share[:2].sum():.0%} of what differs between the images"


def place_by_umap(axes: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, str]:
    try:
        from umap import UMAP
    except ImportError:
        raise ConfigError("--method umap: umap-learn is not installed; install it, or use pca") from None
    if len(axes) < LEAST_FOR_UMAP:
        raise ConfigError(f"--method umap wants {LEAST_FOR_UMAP} images at least, here are {len(axes)}; use pca")
    places = UMAP(n_neighbors=min(15, len(axes) - 1), random_state=0, n_jobs=1).fit_transform(axes)
    return np.asarray(places, np.float64), "UMAP: near means alike; distances between far groups say little"


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, str]]] = {"pca": place_by_pca, "umap": place_by_umap}


def find_clusters(axes: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """k-means with about √(N/2) clusters: the cluster of each row, the largest first, and the row next to each centre."""
    different = len(np.unique(axes.round(4), axis=0))
    count = min(MOST_CLUSTERS, different, max(1, round((len(axes) / 2) ** 0.5)))
    # Seeded by k-means++; a cluster may end empty, and is left out then.
    with warnings.catch_warnings(action="ignore"):
        centres, label = kmeans2(axes, count, minit="++", seed=0)
    found, sizes = np.unique(label, return_counts=True)
    order = found[np.argsort(-sizes, kind="stable")]
    typical = []
    for number in order:
        members = np.flatnonzero(label == number)
        typical.append(int(members[np.square(axes[members] - centres[number]).sum(1).argmin()]))
    places = np.zeros(count, int)
    places[order] = np.arange(len(order))
    return places[label], typical
