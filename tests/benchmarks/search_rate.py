"""Measure the cost of search and duplicates, in CPU time of one thread.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/search_rate.py
"""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from imagemill.models import checkpoint as checkpoints
from imagemill.models.likeness import DIMENSIONS, likeness_features
from imagemill.pipeline.output.neighbours import find_nearest, find_similar_groups

BATCH = 10_000


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    coder = checkpoints.build(*checkpoints.read("compress-small"))
    latents = rng.laplace(size=(64, coder.code_channels, 32, 43)).astype(np.float32)
    took = seconds(lambda: likeness_features(latents, coder))
    print(f"features of dequantised latents of 256×344 pixels: {1000 * took / len(latents):.2f} ms an image")
    vectors = rng.normal(size=(20 * BATCH, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = pa.table({"image_id": pa.array(["0" * 32] * BATCH)})
    batches = [(rows, vectors[start : start + BATCH]) for start in range(0, len(vectors), BATCH)]
    took = seconds(lambda: find_nearest(vectors[:1], batches, 10))
    print(f"nearest 10 among {len(vectors):,} vectors: {took:.3f} s")
    for count in (BATCH, 2 * BATCH):
        took = seconds(lambda: find_similar_groups(vectors[:count], 0.7))  # noqa: B023 - called at once
        print(f"all pairs of {count:,} vectors: {took:.1f} s, {count**2 / 2 / took / 1e6:.0f} million pairs a second")


if __name__ == "__main__":
    main()
