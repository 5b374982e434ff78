"""What every actor of a run is told."""

from dataclasses import dataclass
from typing import Any

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store


@dataclass(frozen=True)
class WorkerJob:
    """All that an actor needs to know; the same for each image of a run."""

    task: str
    params: dict[str, Any]
    checkpoint_sha256: str
    style_images: list[str]
    """Digests of the images that the run works from beside its input; `store_style_images` put them into OUTPUT."""
    source: Input
    output: Store
    max_pixels: int
    image: ImageConfig
    reconstruct: bool
    quality: float
    """The share of images whose figures of quality are computed."""
    compression_level: int
    lineage: dict[str, Any]
    batch_size: int
    threads: int
    """Threads that fetch and decode."""
    gpus: float
    """The share of a GPU that Ray gives an actor, or 0. Ray hides no GPU from an actor without one, so torch cannot tell."""
    torch_threads: int
    """Threads of torch where the model runs on the CPU."""
    dtype: str | None
    accept_damaged: bool = False
    """Whether a picture that is damaged in part becomes a row rather than a reject."""
    oldest_unaccounted_file: str | None = None
    """Path in OUTPUT (`ownership.oldest_unaccounted_file`): an older output file of an image without a row is the user's."""
