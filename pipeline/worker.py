"""The actor as Ray Data ships it: what was predicted of a block is committed where it was made.

The driver unpacks this file and the job's, so neither imports torch.
"""

import threading
from typing import Any

import pyarrow as pa

from imagemill.pipeline.worker_job import WorkerJob

BLOCKS_AT_ONCE = 2
"""While a block is committed the model goes on with the next."""


class Worker:
    """A BlockProcessor and a Sink, once it is made."""

    def __init__(self, job: WorkerJob) -> None:
        from imagemill.pipeline.block_processor import BlockProcessor
        from imagemill.pipeline.sink import Sink

        self.predict = BlockProcessor(job)
        self.sink = Sink(job, self.predict.task, self.predict.tally)
        self.model_is_free = threading.Lock()

    def __call__(self, block: pa.Table) -> dict[str, list[Any]]:
        """Rows stay here; that Ray has this block's answer says that they are committed."""
        rows = None
        with self.model_is_free:
            for more in self.predict(block):
                if rows is not None:
                    self.sink(rows)
                rows = more
        if rows is not None:
            self.sink(rows)
        return {"rows": [len(block)]}
