"""Vectors of images, computed from their latents, and exact nearest-neighbour search over them, in blocks."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imagemill.models.latents import Coder, encode_images, encode_values
from imagemill.models.likeness import Whitening, choose_whitening, likeness_features, similarity
from imagemill.models.precision import Precision
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.type_checks import require_value
from imagemill.pipeline.errors import VerificationError, join_first
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.output.latent_values import LatentCoders, check_latents, dequantise, latent_batches
from imagemill.pipeline.output.snapshot import Snapshot, read_snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.storage import Store

MADE_BY = ["model_id", "checkpoint_sha256", "step", "parameters"]
WHITENING_IMAGES = 20_000
"""Images from which a whitening is computed if the model has none: the first ones, in the order of the parts."""
COMPARED_PAIRS = 16_000_000
"""Pairs that are compared at a time."""


@dataclass(frozen=True)
class Collection:
    """The images of an OUTPUT whose vectors are comparable: the newest model made their rows, with one set of parameters."""

    state: Snapshot
    others: list[str]
    """Models and parameters of the rows that are left out, with the number of rows."""
    step: float | None
    """The quantiser step; None for float latents."""
    pixels: ImageConfig
    coder: Coder

    def features_of(self, rgb: np.ndarray) -> np.ndarray:
        """Compute the features (1,F) of an image (H,W,3) uint8, in the same way as those of the rows."""
        if isinstance(self.coder, FloatCoder):
            return likeness_features(encode_values(self.coder, [rgb], None, Precision()), self.coder)
        step = require_value(self.step, "the quantiser step")
        symbols = encode_images(self.coder, [rgb], step, "cpu")
        width, zero = self.coder.dequantisation(step)
        return likeness_features(dequantise(symbols, width.float().numpy()[None], np.array([zero])), self.coder)

    def features(self, columns: list[str], problems: list[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield rows and their features (N,F) in batches. Damaged rows are added to `problems` and left out."""
        for latents in latent_batches(self.state, columns, problems):
            yield latents.rows, likeness_features(latents.values, self.coder)

    def select(self, column: str, values: list[str]) -> Snapshot:
        """Return the snapshot of the images whose `column` has one of the values."""
        is_selected = [
            pc.is_in(table[column], pa.array(values, pa.string())).to_numpy() for table in self.state.tables([column])
        ]
        return self.state.select(np.concatenate(is_selected))

    def with_state(self, state: Snapshot) -> "Collection":
        """Return the collection with another snapshot, such as a selection of its images."""
        return replace(self, state=state)

    def vectors(self, columns: list[str], problems: list[str]) -> tuple[Whitening, Iterator[tuple[pa.Table, np.ndarray]]]:
        """Return the whitening of the collection, and an iterator over rows with their vectors (N,D)."""
        batches = with_progress(
            "read latents", self.features(columns, problems), len(self.state), lambda batch: len(batch[0])
        )
        head: list[tuple[pa.Table, np.ndarray]] = []
        while sum(len(rows) for rows, _ in head) < WHITENING_IMAGES and (batch := next(batches, None)):
            head.append(batch)
        if not head:
            raise VerificationError(f"{self.state.output.url}: all latents are damaged: {join_first(problems)}")
        whiten = choose_whitening(self.coder, np.concatenate([values for _, values in head]))
        return whiten, ((rows, whiten(values)) for rows, values in chain(head, batches))


def load_collection(output: Store) -> Collection:
    """Load the images that the model of the newest row made with the parameters of that row.

    How latents are coded, and whether they were decoded, does not change symbols, so these parameters are ignored.

    Raises:
        ConfigError: when there are no such images.
        StorageError, CheckpointError: when a part or the checkpoint cannot be read.
    """
    state = read_snapshot(output)
    check_latents(state)
    names: list[str] = []
    models: list[tuple[str, float | None, str]] = []
    made_by_part, fencing_tokens = [], []
    for table in state.tables([*MADE_BY, "fence"]):
        encoded = [table[name].combine_chunks().dictionary_encode() for name in MADE_BY]
        codes = np.stack([column.indices.fill_null(-1).to_numpy() for column in encoded], 1)
        _, first, kind = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        numbers = []
        for row in table.take(pa.array(first)).to_pylist():
            image = json.dumps(json.loads(row["parameters"] or "{}").get("image", {}), sort_keys=True)
            key = (row["checkpoint_sha256"], row["step"], image)
            if key not in models:
                models.append(key)
                at_step = "" if row["step"] is None else f" at step {row['step']:g}"
                names.append(f"{row['model_id']} {row['checkpoint_sha256'][:8]}{at_step}")
            numbers.append(models.index(key))
        made_by_part.append(np.array(numbers)[kind.ravel()])
        fencing_tokens.append(table["fence"].fill_null(0).to_numpy())
    model_of_row = np.concatenate(made_by_part)
    newest = model_of_row[np.concatenate(fencing_tokens).argmax()]
    counts = Counter(model_of_row[model_of_row != newest].tolist())
    sha256, step, image = models[newest]
    return Collection(
        state.select(model_of_row == newest),
        [f"{count:,} of {names[number]}" for number, count in counts.most_common()],
        step,
        ImageConfig(**json.loads(image)),
        LatentCoders(output)[sha256],
    )


def find_nearest(query: np.ndarray, batches: Iterable[tuple[pa.Table, np.ndarray]], k: int) -> pa.Table:
    """Find the rows nearest to a vector, with memory for one batch.

    Args:
        query: the vector (1,D).
        batches: rows with their vectors (N,D).
        k: number of rows to return.

    Returns:
        The k nearest rows, best first, with the column `similarity`.

    Raises:
        VerificationError: when there are no rows.
    """
    best: pa.Table | None = None
    for rows, vectors in batches:
        similarities = similarity(vectors, query)[:, 0]
        top = np.argsort(-similarities, kind="stable")[:k]
        nearest = rows.take(pa.array(top)).append_column("similarity", pa.array(similarities[top], pa.float32()))
        candidates = nearest if best is None else pa.concat_tables([best, nearest])
        best = candidates.take(pa.array(np.argsort(-candidates["similarity"].to_numpy(), kind="stable")[:k]))
    if best is None:
        raise VerificationError("all latents are damaged, so there is nothing to compare with")
    return best


def find_similar_groups(vectors: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Group vectors that are connected by pairs at least as similar as a threshold.

    Memory stays bounded even if thousands of images are alike, such as blank pages, because pairs are merged as they are
    found.

    Args:
        vectors: (N,D) float32.
        threshold: minimum similarity of a pair.

    Returns:
        Indexes of the vectors of each group of two or more, the largest group first.
    """
    count = len(vectors)
    block, group = max(1, COMPARED_PAIRS // count), np.arange(count)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def merge_pairs() -> np.ndarray:
        first, second = (
            np.concatenate([previous, *(pair[side] for pair in pairs)])
            for side, previous in enumerate((np.arange(count), group))
        )
        _, label = connected_components(
            coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count)), directed=False
        )
        _, lowest = np.unique(label, return_index=True)
        return lowest[label]

    for start in range(0, count, block):
        first, second = np.nonzero(similarity(vectors[start : start + block], vectors[start:]) >= threshold)
        is_new = second > first
        if is_new.any():
            pairs.append((first[is_new] + start, second[is_new] + start))
        if sum(len(ends) for ends, _ in pairs) > COMPARED_PAIRS:
            group, pairs = merge_pairs(), []
    group = merge_pairs() if pairs else group
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((members for members in groups if len(members) > 1), key=len, reverse=True)


def link_to_first(vectors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Link each image of a group of `find_similar_groups` to the first one, along the shortest path of similar pairs.

    Args:
        vectors: the vectors of the group, (N,D) float32.
        threshold: minimum similarity of a pair.

    Returns:
        The index of the image before each image on its path, (N,) int64, and the similarity of the two, (N,) float32. Among
        several shortest paths the one with the most similar last pair is chosen. The first image is linked to itself.
    """
    previous, similarities = np.zeros(len(vectors), np.int64), np.ones(len(vectors), np.float32)
    unlinked, linked = np.arange(1, len(vectors)), np.zeros(1, np.int64)
    similarities[unlinked] = -np.inf
    while len(unlinked):
        for block in np.array_split(unlinked, -(-len(unlinked) * len(linked) // COMPARED_PAIRS)):
            pairs = similarity(vectors[block], vectors[linked])
            best = pairs.max(1)
            is_better = best > similarities[block]
            previous[block[is_better]], similarities[block[is_better]] = linked[pairs.argmax(1)[is_better]], best[is_better]
        # A pair exactly at the threshold may be rounded below it, because these blocks have another shape.
        is_linked = similarities[unlinked] >= min(threshold, similarities[unlinked].max())
        unlinked, linked = unlinked[~is_linked], unlinked[is_linked]
    return previous, similarities
