"""Short waits before retries of requests to S3, so that tests of bad connections wait less; the retries stay the same."""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from imagemill.pipeline.engines.local_engine import run_worker
from imagemill.pipeline.worker_job import WorkerJob

WAIT_SECONDS = 0.05


def shorten_waits(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Shorten the waits of botocore's client and of a Store in this process."""
    from botocore import retryhandler
    from tenacity import nap

    set_attribute(retryhandler, "delay_exponential", lambda base, growth_factor, attempts: WAIT_SECONDS)
    set_attribute(nap, "time", SimpleNamespace(sleep=lambda _: time.sleep(WAIT_SECONDS)))


def run_worker_with_short_waits(connection: Connection, job: WorkerJob) -> None:
    """Replace `run_worker` in tests."""
    shorten_waits()
    run_worker(connection, job)
