"""The job that an engine sends to each worker of a run."""

from dataclasses import dataclass
from typing import Any

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.user_code import UserCode


@dataclass(frozen=True)
class WorkerJob:
    """Everything that a worker needs to know in addition to its blocks. All workers of a run have the same job."""

    task: str
    params: dict[str, Any]
    """Parameters of the task."""
    checkpoint_sha256: str
    """Digest of the checkpoint; the driver stored a copy of it in the output."""
    style_images: list[str]
    """Digests of the style images; the driver stored copies of them in the output."""
    source: Input
    output: Store
    max_pixels: int
    image: ImageConfig
    reconstruct: bool
    """Whether to write decoded images for a task whose output is a latent."""
    quality: float
    """Share of images, 0 to 1, whose quality is measured."""
    compression_level: int
    """zstd level of the Parquet parts."""
    lineage: dict[str, Any]
    """The columns of schema.LINEAGE that are the same for all rows of a run."""
    batch_size: int
    """Maximum number of images in a model batch."""
    threads: int
    """Threads that decode and encode."""
    fetch_threads: int
    """Threads that fetch."""
    fetch_per_host: int
    """Maximum number of requests at once of this worker to one web server."""
    gpus: float
    """Share of a GPU that the engine gives the worker, or 0. torch cannot tell, because Ray does not hide other GPUs."""
    torch_threads: int
    """Threads of torch if the model runs on the CPU."""
    dtype: str | None
    """float32, bfloat16 or float16; None chooses by the hardware."""
    code: UserCode | None = None
    """The code of a network that a user defines."""
    workers: int = 1
    """Workers of the run, which share the memory of their machine."""
    accept_damaged: bool = False
    """Whether a partly damaged image becomes a row instead of a reject."""
    image_timeout_s: float = 600
    """Seconds of one image in one stage after which the process ends (watchdog.py)."""
    oldest_unaccounted_file: str | None = None
    """Path of a file in the output (ownership.oldest_unaccounted_file). No run wrote an output file that is older than this
    file and belongs to an image without a row."""
