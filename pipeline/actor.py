"""The actor as Ray Data ships it: a name and a job, which every process of a run unpacks, the writers of parts too.

So neither this file nor the job's imports torch: it took each writer 1.4 seconds of CPU and 500 MB.
"""

from collections.abc import Iterator

import pyarrow as pa

from pipeline.job import Job


class Actor:
    """A Predictor, once it is made."""

    def __init__(self, job: Job) -> None:
        from pipeline.predict import Predictor

        self.predict = Predictor(job)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        return self.predict(block)
