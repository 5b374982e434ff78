"""Functions that replace `run_worker` in tests: they inject a fault into a worker process and call it.

A fault that happens once leaves a file in the folder FAULTS with the id of its process.
"""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imagemill.pipeline.engines.local_engine import run_worker
from imagemill.pipeline.worker_job import WorkerJob


def is_first(name: str) -> bool:
    """Return whether no other process has called this function with this name."""
    try:
        with (Path(os.environ["FAULTS"]) / name).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def before_commit(action: Callable[[WorkerJob], Any], job: WorkerJob) -> None:
    """Call a function whenever this process is about to commit rows."""
    from imagemill.pipeline.sink import Sink

    commit = Sink.__call__

    def act(sink: Sink, rows: Any) -> None:
        action(job)
        commit(sink, rows)

    Sink.__call__ = act


def end_before_commit(connection: Connection, job: WorkerJob) -> None:
    """Exit once. The images of the block are written then, and their rows are not."""
    before_commit(lambda job: is_first("fault") and os._exit(3), job)
    run_worker(connection, job)


def die_before_commit(connection: Connection, job: WorkerJob) -> None:
    """Die like a process that the kernel kills for lack of memory."""
    before_commit(lambda job: is_first("fault") and os.kill(os.getpid(), signal.SIGKILL), job)
    run_worker(connection, job)


def crash_before_commit(connection: Connection, job: WorkerJob) -> None:
    before_commit(lambda job: is_first("fault") and os.kill(os.getpid(), signal.SIGSEGV), job)
    run_worker(connection, job)


def stop_before_commit(connection: Connection, job: WorkerJob) -> None:
    before_commit(lambda job: is_first("fault") and os.kill(os.getpid(), signal.SIGSTOP), job)
    run_worker(connection, job)


def kill_server_before_commit(connection: Connection, job: WorkerJob) -> None:
    before_commit(lambda job: is_first("fault") and os.kill(os.getppid(), signal.SIGKILL), job)
    run_worker(connection, job)


def lose_lease_before_commit(connection: Connection, job: WorkerJob) -> None:
    before_commit(lambda job: job.output.write("runs/lease/00000099.json", b"{}"), job)
    run_worker(connection, job)


def hang_before_commit(connection: Connection, job: WorkerJob) -> None:
    before_commit(lambda job: (is_first(f"hanging-{os.getpid()}"), time.sleep(600)), job)
    run_worker(connection, job)


def fail_to_start(connection: Connection, job: WorkerJob) -> None:
    os._exit(4)


def only_first_starts(connection: Connection, job: WorkerJob) -> None:
    if is_first("started"):
        run_worker(connection, job)
    os._exit(4)


def run_out_of_memory_in_block(connection: Connection, job: WorkerJob) -> None:
    from imagemill.pipeline.block_processor import BlockProcessor

    def process(*_: Any) -> None:
        raise MemoryError

    BlockProcessor.__call__ = process
    run_worker(connection, job)


def run_out_of_memory_between_blocks(connection: Connection, job: WorkerJob) -> None:
    """Fail once to receive a message, when the process works on a block."""
    receive, received = Connection.recv, []

    def receive_or_fail(connection: Connection) -> Any:
        received.append(receive(connection))
        if len(received) == 2 and is_first("fault"):
            raise MemoryError
        return received[-1]

    Connection.recv = receive_or_fail
    run_worker(connection, job)


def raise_unpicklable_error(connection: Connection, job: WorkerJob) -> None:
    from imagemill.pipeline.block_processor import BlockProcessor

    class StrangeError(Exception):
        """An exception of a class that other processes cannot import."""

    def process(*_: Any) -> None:
        raise StrangeError("the library is angry")

    BlockProcessor.__call__ = process
    run_worker(connection, job)


def cannot_report(connection: Connection, job: WorkerJob) -> None:
    """Fail to send the first error, as without memory."""
    from imagemill.pipeline.engines import local_engine

    def picklable(error: BaseException) -> BaseException:
        raise MemoryError

    local_engine.picklable = picklable
    # Only one worker fails, also if both commit at the same moment.
    before_commit(lambda job: is_first("fault") and 1 / 0, job)
    run_worker(connection, job)


def kill_server_at_start(connection: Connection, job: WorkerJob) -> None:
    """Die with the fork server and the other workers, twice in all."""
    if any(is_first(f"fault-{number}") for number in range(2)):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    run_worker(connection, job)
