"""The local engine: runs the blocks of a plan on worker processes of this machine, without Ray."""

import logging
import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pyarrow as pa

from imagemill.models.errors import CheckpointError
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.engine import RUN_AGAIN, Work, blocks_at_once
from imagemill.pipeline.engines.fork_server import ForkedProcess, describe_end, fork, picklable, start_server
from imagemill.pipeline.engines.local_channel import LocalChannel, WorkerChannel
from imagemill.pipeline.errors import OutputHeld, RunFailed, StorageError
from imagemill.pipeline.logs import forward_records, handle_record
from imagemill.pipeline.machine import available_cpus
from imagemill.pipeline.pool import pool_for
from imagemill.pipeline.run_progress import RunProgress
from imagemill.pipeline.signals import delay_signals
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.worker import BLOCKS_AT_ONCE, Worker
from imagemill.pipeline.worker_job import WorkerJob

log = logging.getLogger("imagemill.run")
LOOK_SECONDS = 1.0
"""Maximum time between two looks at the workers."""
MOST_FAILED_STARTS = 3
"""Processes in a row that end before they are ready, after which the run continues with fewer workers, or fails."""


def run_worker(connection: Connection, job: WorkerJob) -> None:
    """Process blocks until the driver ends. This function is the main function of a worker process.

    The messages of the driver are ("block", number, table) and ("answer", values). Those of the worker are the calls of
    WorkerChannel and ("log", record), ("ready",), ("done", number) and ("error", exception).
    """
    channel = WorkerChannel(connection)
    forward_records(job.lineage["run_id"], partial(channel.send, "log"))

    def process(number: int, block: pa.Table) -> None:
        try:
            worker.process_block(block)
            channel.send("done", number)
        except BaseException as e:  # noqa: BLE001 - the driver decides
            end_with(e, channel)

    try:
        worker = Worker(job, channel)
        if worker.problem:
            raise worker.problem
        channel.send("ready")
    except Exception as e:  # noqa: BLE001 - the driver decides
        end_with(e, channel)
    threads = ThreadPoolExecutor(BLOCKS_AT_ONCE, thread_name_prefix="block")
    while True:
        # An error ends this process at once, so that no thread commits rows after the driver has ended.
        message, *content = connection.recv()
        if message == "answer":
            channel.answers.put(*content)
        else:
            threads.submit(process, *content)


def end_with(error: BaseException, channel: WorkerChannel) -> NoReturn:
    """Send an error to the driver, which ends the run, and end this process."""
    try:
        traceback.print_exception(error)
        channel.send("error", picklable(error))
    finally:
        # If even that failed, for example without memory, the driver replaces this process.
        os._exit(1)


class LocalWorker:
    """A worker process, and the blocks that it has not finished.

    Args:
        process: runs `run_worker`.
    """

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process
        self.is_ready = False
        self.blocks: list[int] = []
        self._outbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True, name="send")
        self._sender.start()

    def send(self, *message: Any) -> None:
        """Send a message in the background: a process that is stuck must not block the driver."""
        self._outbox.put(message)

    def _send(self) -> None:
        # The driver handles the end of the process when it receives from the connection.
        with suppress(OSError):
            while message := self._outbox.get():
                self.process.connection.send(message)

    def end(self) -> None:
        """Kill the process, and wait until it has ended."""
        self._outbox.put(())
        self.process.kill()
        self.process.exit_status()
        self._sender.join(LOOK_SECONDS)
        self.process.close()


class LocalEngine:
    """Runs workers in processes that the fork server of this process forks.

    Args:
        config: says how many workers run.
    """

    name = "local"

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.channel = LocalChannel()

    def start(self) -> None:
        """Begin to import torch in the fork server."""
        # An error comes again when the run needs processes.
        with suppress(OSError):
            start_server()

    @contextmanager
    def connected(self, run_id: str, images: int) -> Iterator[LocalChannel]:
        """Return the channel of a run. There is nothing to connect to."""
        yield self.channel

    def run(self, work: Work, progress: RunProgress) -> None:
        """Process and commit all images of a run. `Engine` describes the errors."""
        images = work.list_images()
        pool = pool_for(self.config.pool, [(available_cpus(), 0.0)]).no_more_than(len(images))
        log.info("%d images; %s", len(images), pool)
        work.store_model()
        blocks = work.split(images, pool)
        Blocks(work, blocks, work.build_job(pool), self.channel).run(min(pool.workers, len(blocks)))


class Blocks:
    """The blocks of a run, and the workers that process them.

    Args:
        work: the work of the run.
        blocks: tables of references.
        job: the job of each worker.
        channel: receives what the workers publish.
    """

    def __init__(self, work: Work, blocks: list[pa.Table], job: WorkerJob, channel: LocalChannel) -> None:
        self.work, self.blocks, self.job, self.channel = work, blocks, job, channel
        self.waiting = deque(range(len(blocks)))
        self.unfinished = set(self.waiting)
        self.workers: list[LocalWorker] = []
        self.is_ready = False
        self.failed_starts = 0
        """Processes that ended before they were ready, since the last process that was ready."""

    def run(self, workers: int) -> None:
        """Process all blocks on a number of workers, and replace workers that die. At the end no worker is left.

        Raises:
            RunFailed: when no worker can be started.
            Exception: any exception that a worker raises.
        """
        self.most_workers = workers
        try:
            while self.unfinished:
                while len(self.workers) < min(self.most_workers, len(self.unfinished)):
                    self.start_worker()
                ready = wait([worker.process.connection for worker in self.workers], LOOK_SECONDS)
                for worker in [worker for worker in self.workers if worker.process.connection in ready]:
                    self.receive(worker)
        except BaseException as e:
            if not isinstance(e, Exception):
                log.warning("stopping. Committed rows stay")
            raise
        finally:
            with delay_signals():
                for worker in self.workers:
                    worker.process.kill()
                for worker in self.workers:
                    worker.end()

    def start_worker(self) -> None:
        """Start a worker, or continue with fewer workers if the system has no room for another process.

        Raises:
            RunFailed: when the first worker cannot be started.
        """
        try:
            self.workers.append(LocalWorker(fork(run_worker, self.job)))
        except RunFailed as e:
            if not self.workers:
                raise
            self.reduce(str(e))

    def reduce(self, problem: str) -> None:
        """Continue with the workers that are left."""
        self.most_workers = len(self.workers)
        log.warning("%s. The run continues with fewer workers: %d", problem, self.most_workers)

    def receive(self, worker: LocalWorker) -> None:
        """Handle the messages of a worker, or its death."""
        connection = worker.process.connection
        try:
            while connection.poll():
                self.handle(worker, *connection.recv())
        except (EOFError, ConnectionError):
            self.replace(worker)

    def handle(self, worker: LocalWorker, kind: str, *content: Any) -> None:
        """Handle one message of a worker."""
        if kind == "publish":
            self.channel.publish(*content)
        elif kind == "read":
            worker.send("answer", self.channel.read(*content))
        elif kind == "delete":
            self.channel.delete(*content)
        elif kind == "log":
            handle_record(*content)
        elif kind == "error":
            raise translate_error(content[0], self.work)
        elif kind == "ready":
            if not self.is_ready:
                self.work.mark_superseded()
            self.is_ready = worker.is_ready = True
            self.failed_starts = 0
            self.send_blocks(worker)
        elif kind == "done":
            worker.blocks.remove(content[0])
            self.unfinished.discard(content[0])
            self.send_blocks(worker)

    def send_blocks(self, worker: LocalWorker) -> None:
        """Send blocks to a worker until it has as many as it may have at a time."""
        while self.waiting and len(worker.blocks) < blocks_at_once(len(self.blocks), self.most_workers):
            number = self.waiting.popleft()
            worker.blocks.append(number)
            worker.send("block", number, self.blocks[number])

    def replace(self, worker: LocalWorker) -> None:
        """Remove a dead worker, and let others process its blocks again.

        Raises:
            RunFailed: when workers die before they are ready.
        """
        self.workers.remove(worker)
        worker.end()
        self.waiting.extendleft(reversed(worker.blocks))
        status = worker.process.exit_status()
        # A killed fork server takes all its workers with it, and nobody knows their status.
        self.failed_starts += not worker.is_ready and status is not None
        problem = f"a worker process {describe_end(status)}"
        if self.failed_starts < MOST_FAILED_STARTS:
            log.warning("%s; another one replaces it", problem)
        elif self.workers:
            self.reduce(f"{problem} before it was ready, as others before it")
        else:
            raise RunFailed(f"{problem} before it was ready, as {self.failed_starts - 1} before it. {RUN_AGAIN}")
        # An idle worker sends no message that would fetch the blocks, and if it is enough, no other worker is started.
        for other in self.workers:
            if other.is_ready:
                self.send_blocks(other)


def translate_error(error: Exception, work: Work) -> Exception:
    """Return the exception that ends a run for an exception of a worker."""
    if isinstance(error, OutputHeld | CheckpointError):
        return error
    if isinstance(error, StorageError):
        return StorageError(f"{error}. {RUN_AGAIN}")
    if isinstance(error, store_failures()):
        return StorageError(f"{work.resolved.output.url}: {reason(error)}. {RUN_AGAIN}")
    cause = str(error) if isinstance(error, RunFailed) else reason(error)
    return RunFailed(f"a worker failed: {cause}. {RUN_AGAIN}")
