"""What every engine does: run the blocks of a plan on workers, and report their progress, deaths and interruptions."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from imagemill.pipeline.channel import Channel
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.name_clashes import mark_clashes
from imagemill.pipeline.output.ownership import oldest_unaccounted_file
from imagemill.pipeline.output.parts import SUPERSEDED
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.output.style_images import store_style_images
from imagemill.pipeline.plan import Plan, split_blocks
from imagemill.pipeline.pool import Pool
from imagemill.pipeline.resolve import ResolvedRun
from imagemill.pipeline.run_progress import RunProgress
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.sources.image_reader import default_fetch_threads
from imagemill.pipeline.superseded_rows import mark_superseded
from imagemill.pipeline.worker import BLOCKS_AT_ONCE
from imagemill.pipeline.worker_job import WorkerJob

BYTES_PER_PART = 64_000_000
"""Bytes of source files whose rows go into one part."""
BATCH_BYTES = 1_000_000
"""Bytes of source files in a block of large images. A block has at least one image."""
RUN_AGAIN = "Committed rows stay. Run the same command again"


@dataclass(frozen=True)
class Work:
    """The work of a run: which images its workers process, and how."""

    resolved: ResolvedRun
    plan: Plan
    lease: Lease
    record: RunRecord

    def list_images(self) -> pa.Table:
        """Return the references of all images of the plan."""
        return mark_clashes(self.resolved.output, self.plan.todo)

    def store_model(self) -> None:
        """Store the checkpoint and the style images in the output for the workers."""
        store_checkpoint(self.resolved.output, self.resolved.card, self.resolved.weights)
        store_style_images(self.resolved.output, self.resolved.style_images)

    def mark_superseded(self) -> None:
        """Mark images whose older files the workers may overwrite. Call it before the first image is processed."""
        if len(self.plan.redone):
            mark_superseded(self.resolved.output, self.plan.redone, self.record)

    def unmark_superseded(self) -> None:
        """Remove the marks, because no worker has processed an image."""
        if len(self.plan.redone):
            self.resolved.output.delete(f"runs/{self.record.run_id}/{SUPERSEDED}")

    def split(self, images: pa.Table, pool: Pool) -> list[pa.Table]:
        """Split images into blocks for the workers of a pool."""
        bytes_each = max(1, self.plan.bytes_todo // len(self.plan.todo))
        return split_blocks(images, rows_of_block(len(images), self.resolved.config.rows_per_part, bytes_each, pool))

    def build_job(self, pool: Pool) -> WorkerJob:
        """Return the job of the workers of a pool. Record the pool.

        The job is small: Ray passes it again to each restarted actor, and a large object could be gone by then (ray#53727).
        """
        resolved, config, output = self.resolved, self.resolved.config, self.resolved.output
        fetch_threads = config.pool.fetch_threads or default_fetch_threads(resolved.source, pool.threads)
        self.record.pool = pool.record() | {"fetch_threads": fetch_threads}
        # The share refers to the whole plan even after a loss of nodes. Otherwise too many remaining images are measured.
        share = config.measured_share(len(self.plan.todo))
        if resolved.task.stores_latent:
            self.record.measured_share = round(share, 4)
        return WorkerJob(
            task=resolved.task.name,
            params=resolved.params.model_dump(exclude_unset=True),
            checkpoint_sha256=resolved.card.sha256,
            style_images=[sha256 for sha256, _ in resolved.style_images],
            source=resolved.source,
            output=output,
            max_pixels=config.max_pixels,
            image=config.image,
            reconstruct=config.reconstruct,
            quality=share,
            compression_level=config.compression_level,
            lineage=self.record.lineage(),
            batch_size=pool.batch_size,
            threads=pool.threads,
            fetch_threads=fetch_threads,
            fetch_per_host=max(1, config.pool.fetch_per_host // pool.workers),
            gpus=pool.num_gpus,
            torch_threads=pool.torch_threads,
            dtype=config.pool.dtype,
            code=resolved.code,
            workers=pool.workers,
            accept_damaged=config.accept_damaged,
            image_timeout_s=config.image_timeout_s,
            oldest_unaccounted_file=oldest_unaccounted_file(output, str(self.record.run_id), self.plan.rows),
        )


class Engine(Protocol):
    """Runs the blocks of a plan on worker processes.

    A worker that dies is replaced, and its blocks are processed again. The committed rows of a block that is processed twice
    are the same. After a signal or an error, no worker goes on.
    """

    name: str

    def start(self) -> None:
        """Begin to start in the background what takes time, while the run lists its input. Raises no exception."""

    def connected(self, run_id: str, images: int) -> AbstractContextManager[Channel]:
        """Connect to the engine for a `with` block, which receives the channel of the workers of a run.

        Args:
            run_id: id of the run.
            images: number of images of the plan.

        Raises:
            ConfigError: when the engine cannot be reached.
            RunFailed: when the engine does not start.
        """

    def run(self, work: Work, progress: RunProgress) -> None:
        """Process and commit all images of a run.

        Raises:
            CheckpointError: when the model cannot be built. No image has been processed.
            ConfigError: when the engine has no room for the pool, or workers do not see the input or the output.
            OutputHeld: when another run holds the output.
            StorageError: when the output accepts no more files.
            RunFailed: when the engine cannot finish.
        """


def blocks_at_once(blocks: int, workers: int) -> int:
    """Return how many blocks a worker has at a time: the first worker that is ready must not take those of the others."""
    return min(BLOCKS_AT_ONCE, -(-blocks // workers))


def rows_of_block(todo: int, max_rows: int, bytes_each: int, pool: Pool) -> int:
    """Return the number of images in a block: four blocks for each worker, to spread the work, but at least one batch.

    Args:
        todo: number of images in the plan.
        max_rows: maximum number of rows in a part.
        bytes_each: mean bytes of a source file. A block of large images may have less than a batch, because large images do
            not fit into one batch and one worker must not get all of them.
        pool: the workers.
    """
    share = -(-todo // pool.workers)
    batch = min(pool.batch_size, share, max(1, BATCH_BYTES // bytes_each))
    return min(max_rows, max(1, BYTES_PER_PART // bytes_each), max(-(-share // 4), batch))
