"""Images of an OUTPUT as vectors, from their latents, and which of them are near each other; exact, in blocks."""

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

from imagemill.models.autoencoder import LatentCoder
from imagemill.models.likeness import Whitening, choose_whitening, likeness_features, similarity
from imagemill.models.objectives.compress import encode_images
from imagemill.pipeline.errors import VerificationError, first_of
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.output.latent_values import LatentCoders, check_latents, dequantise, latent_batches
from imagemill.pipeline.output.snapshot import Snapshot, read_snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.storage import Store

MADE_BY = ["model_id", "checkpoint_sha256", "step", "parameters"]
WHITENING_IMAGES = 20_000
"""Images that a whitening is taken from where none comes with the product: the first, by the names of parts, digests."""
COMPARED_PAIRS = 16_000_000
"""Pairs at a time."""


@dataclass(frozen=True)
class Collection:
    """The images of an OUTPUT whose rows one model made with one set of parameters, the newest: their vectors compare."""

    state: Snapshot
    others: list[str]
    """What made the rows that are left out, and how many of them."""
    step: float
    pixels: ImageConfig
    coder: LatentCoder

    def features_of(self, rgb: np.ndarray) -> np.ndarray:
        """An image (H,W,3) uint8 on the way that the rows went, to features (1,F)."""
        symbols = encode_images(self.coder, [rgb], self.step, "cpu")
        width, zero = self.coder.dequantisation(self.step)
        return likeness_features(dequantise(symbols, width.float().numpy()[None], np.array([zero])), self.coder)

    def features(self, columns: list[str], problems: list[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Rows and their features (N,F), a batch at a time; damaged ones are named in `problems` and left out."""
        for latents in latent_batches(self.state, columns, problems):
            yield latents.rows, likeness_features(latents.values, self.coder)

    def select(self, column: str, values: list[str]) -> Snapshot:
        """A snapshot of those of its images whose `column` is among `values`."""
        kept = [pc.is_in(t[column], pa.array(values, pa.string())).to_numpy() for t in self.state.tables([column])]
        return self.state.select(np.concatenate(kept))

    def with_state(self, state: Snapshot) -> "Collection":
        """Some of its images."""
        return replace(self, state=state)

    def vectors(self, columns: list[str], problems: list[str]) -> tuple[Whitening, Iterator[tuple[pa.Table, np.ndarray]]]:
        """The whitening of the collection, and rows with their vectors (N,D)."""
        batches = with_progress(
            "read latents", self.features(columns, problems), len(self.state), lambda batch: len(batch[0])
        )
        head: list[tuple[pa.Table, np.ndarray]] = []
        while sum(len(rows) for rows, _ in head) < WHITENING_IMAGES and (batch := next(batches, None)):
            head.append(batch)
        if not head:
            raise VerificationError(f"{self.state.output.url}: no latent is what was written: {first_of(problems)}")
        whiten = choose_whitening(self.coder, np.concatenate([found for _, found in head]))
        return whiten, ((rows, whiten(found)) for rows, found in chain(head, batches))


def load_collection(output: Store) -> Collection:
    """The images of OUTPUT that the model of its newest row made, with that row's parameters.

    How latents are coded and whether they were decoded moves no symbol, so it makes no difference.

    Raises: ConfigError when there are none; StorageError; CheckpointError.
    """
    state = read_snapshot(output)
    check_latents(state)
    names: list[str] = []
    makers: list[tuple[str, float, str]] = []
    maker, fencing_tokens = [], []
    for table in state.tables([*MADE_BY, "fence"]):
        encoded = [table[name].combine_chunks().dictionary_encode() for name in MADE_BY]
        codes = np.stack([column.indices.fill_null(-1).to_numpy() for column in encoded], 1)
        _, first, kind = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        places = []
        for row in table.take(pa.array(first)).to_pylist():
            image = json.dumps(json.loads(row["parameters"] or "{}").get("image", {}), sort_keys=True)
            key = (row["checkpoint_sha256"], row["step"], image)
            if key not in makers:
                makers.append(key)
                names.append(f"{row['model_id']} {row['checkpoint_sha256'][:8]} at step {row['step']:g}")
            places.append(makers.index(key))
        maker.append(np.array(places)[kind.ravel()])
        fencing_tokens.append(table["fence"].fill_null(0).to_numpy())
    made_by = np.concatenate(maker)
    newest = made_by[np.concatenate(fencing_tokens).argmax()]
    counts = Counter(made_by[made_by != newest].tolist())
    sha256, step, image = makers[newest]
    return Collection(
        state.select(made_by == newest),
        [f"{count:,} of {names[number]}" for number, count in counts.most_common()],
        step,
        ImageConfig(**json.loads(image)),
        LatentCoders(output)[sha256],
    )


def find_nearest(query: np.ndarray, batches: Iterable[tuple[pa.Table, np.ndarray]], k: int) -> pa.Table:
    """The k rows nearest to a vector (1,D), best first, with their `similarity`; memory is that of a batch.

    Raises: VerificationError without any row.
    """
    best: pa.Table | None = None
    for rows, vectors in batches:
        alike = similarity(vectors, query)[:, 0]
        top = np.argsort(-alike, kind="stable")[:k]
        found = rows.take(pa.array(top)).append_column("similarity", pa.array(alike[top], pa.float32()))
        both = found if best is None else pa.concat_tables([best, found])
        best = both.take(pa.array(np.argsort(-both["similarity"].to_numpy(), kind="stable")[:k]))
    if best is None:
        raise VerificationError("no latent is what was written: there is nothing to compare with")
    return best


def find_similar_groups(vectors: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Places, among (N,D), that pairs at least as similar as `threshold` connect, in groups of two and more, largest first.

    Memory stays bounded where thousands are all alike, as blank pages are: pairs are put together as they are found.
    """
    count = len(vectors)
    block, group = max(1, COMPARED_PAIRS // count), np.arange(count)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def together() -> np.ndarray:
        first, second = (
            np.concatenate([known, *(pair[side] for pair in pairs)]) for side, known in enumerate((np.arange(count), group))
        )
        _, label = connected_components(
            coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count)), directed=False
        )
        _, lowest = np.unique(label, return_index=True)
        return lowest[label]

    for start in range(0, count, block):
        first, second = np.nonzero(similarity(vectors[start : start + block], vectors[start:]) >= threshold)
        other = second > first
        if other.any():
            pairs.append((first[other] + start, second[other] + start))
        if sum(len(found) for found, _ in pairs) > COMPARED_PAIRS:
            group, pairs = together(), []
    group = together() if pairs else group
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((members for members in groups if len(members) > 1), key=len, reverse=True)


def link_to_first(vectors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """By which each image of a group of `near_groups` is linked to its first: places in (N,D), and the similarity to it.

    Of the shortest ways over pairs at least as similar as `threshold` the last step, and of those the most similar one; the
    first is linked by itself.
    """
    by, alike = np.zeros(len(vectors), np.int64), np.ones(len(vectors), np.float32)
    left, nearer = np.arange(1, len(vectors)), np.zeros(1, np.int64)
    alike[left] = -np.inf
    while len(left):
        for some in np.array_split(left, -(-len(left) * len(nearer) // COMPARED_PAIRS)):
            found = similarity(vectors[some], vectors[nearer])
            best = found.max(1)
            closer = best > alike[some]
            by[some[closer]], alike[some[closer]] = nearer[found.argmax(1)[closer]], best[closer]
        # In blocks of another shape a pair at the very threshold may be rounded to below it.
        near = alike[left] >= min(threshold, alike[left].max())
        left, nearer = left[~near], left[near]
    return by, alike
