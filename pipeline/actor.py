"""The actor as Ray Data ships it: a name and a job, which every process of a run unpacks, the writers of parts too.

So nothing here imports torch: it took each writer 1.3 seconds and 470 MB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.pixels import PixelConfig
from pipeline.sources import Input
from pipeline.storage import Store


@dataclass(frozen=True)
class Job:
    """All that an actor needs to know; the same for each image of a run."""

    task: str
    params: dict[str, Any]
    checkpoint_sha256: str
    references: list[str]
    """Digests of the images that the run works from beside its input; `keep_references` put them into OUTPUT."""
    source: Input
    output: Store
    max_pixels: int
    image: PixelConfig
    reconstruct: bool
    quality: bool
    compression_level: int
    lineage: dict[str, Any]
    batch_size: int
    threads: int
    dtype: str | None


class Actor:
    """A Predictor, once it is made."""

    def __init__(self, job: Job) -> None:
        from pipeline.predict import Predictor

        self.predict = Predictor(job)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        return self.predict(block)
