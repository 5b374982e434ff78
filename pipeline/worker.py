"""A worker processes blocks of references and commits their rows.

The engine's driver imports this file and worker_job.py when it sends them to its workers, so neither imports torch.
"""

import threading
from typing import Any

import pyarrow as pa

from imagemill.pipeline.worker_job import WorkerJob

BLOCKS_AT_ONCE = 2
"""Blocks that a worker works on: while it commits one, the model processes the next."""


class Worker:
    """A BlockProcessor and a Sink; loading the model takes seconds.

    Args:
        job: the same for all blocks of a run.
    """

    def __init__(self, job: WorkerJob) -> None:
        from imagemill.pipeline.block_processor import BlockProcessor
        from imagemill.pipeline.sink import Sink

        self.process = BlockProcessor(job)
        self.sink = Sink(job, self.process.task, self.process.tally)
        self.model_lock = threading.Lock()
        self.process.watchdog.start()

    def __call__(self, block: pa.Table) -> dict[str, list[Any]]:
        """Process and commit a block, and return only its number of images, to keep the rows off the network."""
        uncommitted = None
        with self.model_lock:
            for rows in self.process(block):
                if uncommitted is not None:
                    self.sink(uncommitted)
                uncommitted = rows
        # The last table is committed without the lock, so that the model can start on the next block.
        if uncommitted is not None:
            self.sink(uncommitted)
        return {"rows": [len(block)]}
