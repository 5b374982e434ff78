"""Place the images of an output on a plane: positions, clusters, most similar images."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from imagemill.models.likeness import choose_whitening, similarity
from imagemill.pipeline.errors import ConfigError, VerificationError, join_first
from imagemill.pipeline.output.neighbours import Collection
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.reports.charts import clip_outliers, principal_components

MAX_IMAGES, MAX_PARTS = 1_500, 150
"""A map of a larger output shows a random sample, which is read from at most MAX_PARTS parts."""
MAX_CLUSTERS, CLUSTER_COMPONENTS, NEIGHBOURS = 10, 32, 4
MIN_IMAGES_FOR_UMAP = 5


@dataclass(frozen=True)
class ImageMap:
    """The images of a map; images are named by their index in `rows`."""

    rows: list[dict[str, Any]]
    positions: np.ndarray
    """(N,2) float in [0, 1]."""
    outside: np.ndarray
    """(N,) bool: the image lies outside the map and is drawn at its edge."""
    method: str
    """Sentences that explain the positions."""
    cluster: np.ndarray
    """(N,) number of the cluster, from 0, the largest cluster first."""
    typical: list[int]
    """The image next to the center of each cluster."""
    neighbours: np.ndarray
    """(N,≤NEIGHBOURS) the most similar images of each image."""
    similarity: np.ndarray
    """(N,) similarity to the most similar image; 0 for a single image."""


def draw_sample(state: Snapshot, most: int = MAX_IMAGES, parts: int = MAX_PARTS) -> Snapshot:
    """Return a random sample of a snapshot; the same snapshot always gives the same sample.

    Args:
        state: the images.
        most: the largest number of images to return.
        parts: the largest number of parts to take images from.
    """
    if len(state) <= most:
        return state
    rng = np.random.default_rng(0)
    all_parts = np.unique(state.part)
    drawn_parts = rng.choice(all_parts, min(parts, len(all_parts)), replace=False)
    candidates = np.flatnonzero(np.isin(state.part, drawn_parts))
    is_drawn = np.zeros(len(state), bool)
    is_drawn[rng.choice(candidates, min(most, len(candidates)), replace=False)] = True
    return state.select(is_drawn)


def build_map(images: Collection, columns: list[str], method: str, problems: list[str]) -> ImageMap:
    """Build the map of a collection.

    Args:
        images: the images.
        columns: the columns of the rows to return.
        method: a key of METHODS.
        problems: a sentence about each damaged latent is appended; damaged latents are left out.

    Raises:
        ConfigError: when the method is unknown or not installed, or needs more images.
        VerificationError: when all latents are damaged.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: unknown method. Valid: {', '.join(METHODS)}")
    sample = images.with_state(draw_sample(images.state))
    read = sample.features(columns, problems)
    batches = list(with_progress("map: read latents", read, len(sample.state), lambda batch: len(batch[0])))
    if not batches:
        raise VerificationError(f"{images.state.output.url}: all latents are damaged: {join_first(problems)}")
    features = np.concatenate([values for _, values in batches])
    rows = [row for table, _ in batches for row in table.to_pylist()]
    vectors = choose_whitening(images.coder, features)(features)
    similarities = similarity(vectors, vectors)
    np.fill_diagonal(similarities, -np.inf)
    neighbours = np.argsort(-similarities, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(rows) - 1)]
    components, share = principal_components(features, CLUSTER_COMPONENTS)
    positions, explanation = METHODS[method](components, share)
    positions, outside = clip_outliers(positions)
    if count := int(outside.sum()):
        lie = "image lies" if count == 1 else "images lie"
        explanation += f" {count:,} {lie} far outside, at the edge of the map: as a diamond, or with a dashed frame."
    low, high = positions.min(0), positions.max(0)
    positions = np.where(high > low, (positions - low) / np.where(high > low, high - low, 1), 0.5)
    cluster, typical = find_clusters(components)
    return ImageMap(rows, positions, outside, explanation, cluster, typical, neighbours, np.maximum(similarities.max(1), 0))


def place_by_pca(components: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the first two principal components as positions, and a sentence that explains them."""
    return components[:, :2], f"Positions: PCA. The two axes explain {share[:2].sum():.0%} of the variance."


def place_by_umap(components: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, str]:
    """Return positions by UMAP, and a sentence that explains them.

    Raises:
        ConfigError: when umap-learn is not installed, or there are too few images.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise ConfigError("--method umap: needs umap-learn. Run: pip install umap-learn, or use --method pca") from None
    if len(components) < MIN_IMAGES_FOR_UMAP:
        needed = f"needs at least {MIN_IMAGES_FOR_UMAP} images, the output has {len(components)}"
        raise ConfigError(f"--method umap: {needed}. Use --method pca.")
    umap = UMAP(n_neighbors=min(15, len(components) - 1), random_state=0, n_jobs=1)
    positions = umap.fit_transform(components)
    return np.asarray(positions, np.float64), "Positions: UMAP. Close images are similar; large distances mean little."


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, str]]] = {"pca": place_by_pca, "umap": place_by_umap}


def find_clusters(components: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Find about √(N/2) clusters by k-means, at most MAX_CLUSTERS.

    Args:
        components: (N,A).

    Returns:
        The cluster of each row, the largest cluster first, and the row next to each center.
    """
    distinct = len(np.unique(components.round(4), axis=0))
    count = min(MAX_CLUSTERS, distinct, max(1, round((len(components) / 2) ** 0.5)))
    # k-means warns of empty clusters; they are left out below.
    with warnings.catch_warnings(action="ignore"):
        centers, labels = kmeans2(components, count, minit="++", seed=0)
    numbers, sizes = np.unique(labels, return_counts=True)
    order = numbers[np.argsort(-sizes, kind="stable")]
    typical = []
    for number in order:
        members = np.flatnonzero(labels == number)
        typical.append(int(members[np.square(components[members] - centers[number]).sum(1).argmin()]))
    ranks = np.zeros(count, int)
    ranks[order] = np.arange(len(order))
    return ranks[labels], typical
