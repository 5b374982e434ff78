"""The actor as Ray Data ships it: what was predicted of a block is committed where it was made.

The driver unpacks this file and the job's, so neither imports torch.
"""

import threading
from typing import Any

import pyarrow as pa

from imagemill.pipeline.job import Job

BLOCKS_AT_ONCE = 2
"""While a block is committed the model goes on with the next."""


class Actor:
    """A Predictor and a Sink, once it is made."""

    def __init__(self, job: Job) -> None:
        from imagemill.pipeline.predict import Predictor
        from imagemill.pipeline.sink import Sink

        self.predict = Predictor(job)
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
