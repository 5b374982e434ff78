"""End the work of Ray Data early: without room for the workers, at a deadline, or on Ctrl-C.

Ray's core is compiled: an exception that a signal handler raises in it appears as SystemError, or not at all. The work is
therefore ended between two steps of Ray Data's own loop.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data.exceptions import ExecutionTimeoutError

from imagemill.pipeline.cluster.contact import clean_up
from imagemill.pipeline.cluster.nodes import LOOK_SECONDS, free_resources, node_resources
from imagemill.pipeline.pool import Nodes, Pool, describe_free, room_for
from imagemill.pipeline.signals import delay_signals

log = logging.getLogger("imagemill.run")
OTHER_WORK_SECONDS = 30.0
"""Time without a processed image after which other work is reported; until then, an earlier run may still be ending."""
REPORT_SECONDS = 60.0
"""Interval of the reports about other work."""
checks: list[Callable[[], None]] = []
"""Checks of this process. They are global because Ray Data creates the callback and ships its class to every worker."""
actors: list[Any] = []
"""Handles of the Ray actors that run the workers."""


class Ended(ExecutionTimeoutError):  # type: ignore[misc]
    """The work was ended from outside. Ray Data prints no stack trace for this base class."""


class NoRoom(Ended):
    """The cluster has no room for the workers, and no image is being processed.

    Args:
        message: the reason.
        is_occupied: whether the cluster would have room if other work did not hold its nodes.
    """

    def __init__(self, message: str, is_occupied: bool = False) -> None:
        super().__init__(message)
        self.is_occupied = is_occupied


class Steps(ExecutionCallback):  # type: ignore[misc]
    """Run the checks at each step of Ray Data, several times a second."""

    def on_execution_step(self, executor: Any) -> None:
        """Run the checks of this process."""
        pools = [op._actor_pool for op in executor._topology if isinstance(op, ActorPoolMapOperator)]
        actors[:] = [actor for pool in pools for actor in (*pool._running_actors, *pool._pending_actors.values())]
        for check in checks:
            check()


def count_placed() -> int:
    """Return how many actors have a process on a node. The remaining actors wait for a place."""
    from ray._private.state import actors as table

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    states = table(job_id=job)
    entries = [states[actor._actor_id.hex()] for actor in list(actors) if actor._actor_id.hex() in states]
    return sum(1 for entry in entries if entry["State"] in ("PENDING_CREATION", "ALIVE") and entry["Address"]["IPAddress"])


class Room:
    """A check that the workers of a run have places. Ray Data calls the check at each step.

    With too few nodes and no progress, the check raises NoRoom after `patience_s`: an actor whose node died waits for
    another node, together with its images, and Ray Data would wait for that actor forever. If other work holds the
    nodes, the check logs that, and raises NoRoom only if the run limits its wait.

    Args:
        pool: the workers.
        done: returns the number of processed images.
        patience_s: seconds without progress before NoRoom.
        shared: whether other work may use the cluster.
        wait_s: maximum seconds to wait for other work; 0: no limit.
    """

    def __init__(
        self, pool: Pool, done: Callable[[], float], patience_s: float, shared: bool = False, wait_s: float = 0
    ) -> None:
        self.pool, self.done, self.patience_s, self.shared, self.wait_s = pool, done, patience_s, shared, wait_s
        self.last_done, self.checked_at, self.logged_at = done(), 0.0, -REPORT_SECONDS
        self.done_at = self.last_room_at = time.monotonic()

    def __call__(self) -> None:
        """Raise NoRoom if the run cannot go on."""
        now = time.monotonic()
        if now - self.checked_at < LOOK_SECONDS:
            return
        self.checked_at, nodes = now, node_resources()
        if self.done() != self.last_done:
            self.last_done, self.done_at, self.last_room_at = self.done(), now, now
        elif room_for(self.pool, nodes) >= self.pool.workers:
            self.last_room_at = now
            if self.shared and now - self.done_at > OTHER_WORK_SECONDS:
                self.check_other_work(now, nodes)
        elif now - self.last_room_at > self.patience_s:
            raise NoRoom(
                f"no image was processed for {self.patience_s:.0f} s, and the cluster has no room for {self.pool.on(nodes)}"
            )

    def check_other_work(self, now: float, nodes: Nodes) -> None:
        """Log every minute that other work holds the nodes that the workers need.

        Raises:
            NoRoom: when the run limits its wait (`wait_s`) and the limit is over.
        """
        free, placed = free_resources(), count_placed()
        if placed >= self.pool.workers or room_for(self.pool, free):
            return
        state = f"{describe_free(self.pool, free, nodes)}, and {placed} of {self.pool.workers} workers have a place"
        if self.wait_s and not placed and now - self.done_at > self.wait_s:
            raise NoRoom(f"other work has held the cluster for {self.wait_s:.0f} s: {state}", is_occupied=True)
        if now - self.logged_at > REPORT_SECONDS:
            self.logged_at = now
            limit = f"up to {self.wait_s:g} s" if self.wait_s else "without a limit (pool.wait_s sets a limit)"
            log.warning("%s: other work holds the rest. The run waits %s", state, limit)


def kill_actors() -> None:
    """Kill the actors at work."""
    for actor in list(actors):
        # A dead actor must not prevent the others from being killed.
        with suppress(Exception):
            ray.kill(actor)


@contextmanager
def watch_workers(
    pool: Pool, done: Callable[[], float], patience_s: float, shared: bool = False, wait_s: float = 0
) -> Iterator[None]:
    """Let NoRoom and signals end the work of Ray Data in a `with` block. Room describes the arguments.

    If the work fails, its actors are killed. Ray Data keeps them until the last handle is released, but the frames of the
    exception hold handles, so the next work on the same Ray would wait for their CPUs forever.
    """

    def end_on_signal() -> None:
        if waiting:
            log.warning("stopping. Committed rows stay")
            raise Ended

    ray.data.DataContext.get_current().custom_execution_callback_classes = [Steps]
    with delay_signals(once=True) as waiting:
        checks[:] = [end_on_signal, Room(pool, done, patience_s, shared, wait_s)]
        try:
            yield
        except BaseException:
            clean_up(kill_actors)
            raise
        finally:
            checks.clear()
            actors.clear()
