"""A worker processes blocks of references and commits their rows.

The driver imports this file and worker_job.py to send them to its workers, so neither imports torch.
"""

import threading

import pyarrow as pa

from imagemill.models.errors import CheckpointError
from imagemill.pipeline.channel import Channel, StageMetrics
from imagemill.pipeline.worker_job import WorkerJob

BLOCKS_AT_ONCE = 2
"""Blocks that a worker works on: while it commits one, the model processes the next."""


class Worker:
    """A BlockProcessor and a Sink; loading the model takes seconds.

    Args:
        job: the same for all blocks of a run.
        channel: connects the worker with the driver.
        metrics: what the engine serves to a monitoring system, if it does.
    """

    def __init__(self, job: WorkerJob, channel: Channel, metrics: StageMetrics | None = None) -> None:
        from imagemill.pipeline.block_processor import BlockProcessor
        from imagemill.pipeline.sink import Sink
        from imagemill.pipeline.tally import Tally

        self.problem: CheckpointError | None = None
        self.model_lock = threading.Lock()
        tally = Tally(job.lineage["run_id"], channel, metrics)
        if job.code:
            job.code.permit()
        try:
            self.process = BlockProcessor(job, channel, tally)
        except CheckpointError as e:
            # An engine would start a worker again whose constructor fails.
            self.problem = e
            return
        self.sink = Sink(job, self.process.task, tally, self.process.latents)
        self.process.watchdog.start()

    def process_block(self, block: pa.Table) -> int:
        """Process and commit a block, and return its number of images.

        Raises:
            CheckpointError: when the model cannot be built, or does not support the parameters of the task.
            StorageError: when the output accepts no more files.
            OutputHeld: when another run holds the output.
            RunFailed: when too many processes died in this block.
        """
        if self.problem:
            raise self.problem
        uncommitted = None
        with self.model_lock:
            for rows in self.process(block):
                if uncommitted is not None:
                    self.sink(uncommitted)
                uncommitted = rows
        # The last table is committed without the lock, so that the model can start on the next block.
        if uncommitted is not None:
            self.sink(uncommitted)
        return len(block)
