"""What a worker is told, for tests that do its work in the test process."""

from imagemill.pipeline.block_processor import BlockProcessor
from imagemill.pipeline.engines.local_channel import LocalChannel
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.resolve import ResolvedRun
from imagemill.pipeline.tally import Tally
from imagemill.pipeline.worker_job import WorkerJob


def processor_here(job: WorkerJob) -> BlockProcessor:
    """Return a block processor of the test process."""
    channel = LocalChannel()
    return BlockProcessor(job, channel, Tally(job.lineage["run_id"], channel))


def job_here(resolved: ResolvedRun, fence: int = 1) -> WorkerJob:
    """Return the worker's job of a run; store the checkpoint in the output."""
    store_checkpoint(resolved.output, resolved.card, resolved.weights)
    lineage = dict.fromkeys(("model_id", "config_sha256", "parameters"), "-")
    lineage |= {"task": resolved.task.name, "checkpoint_sha256": resolved.card.sha256, "run_id": "r"}
    return WorkerJob(
        task=resolved.task.name,
        params={},
        checkpoint_sha256=resolved.card.sha256,
        style_images=[],
        source=resolved.source,
        output=resolved.output,
        max_pixels=resolved.config.max_pixels,
        image=resolved.config.image,
        reconstruct=False,
        quality=0.0,
        compression_level=1,
        lineage=lineage | {"fence": fence},
        batch_size=resolved.config.pool.batch_size or 2,
        threads=2,
        fetch_threads=2,
        fetch_per_host=2,
        gpus=0,
        torch_threads=1,
        dtype=None,
    )
