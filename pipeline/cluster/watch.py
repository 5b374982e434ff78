"""What ends the work of Ray Data before it is done: a cluster without room for the actors, a deadline, Ctrl-C.

Ray's core is compiled, and an exception that a signal's handler raises in it comes out as SystemError, or never: the work
is ended between two steps of Ray Data's own loop instead.
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

from imagemill.pipeline.cluster.connection import signals_wait
from imagemill.pipeline.cluster.contact import clean_up
from imagemill.pipeline.cluster.pool import LOOK_SECONDS, Nodes, Pool, free_of, free_resources, node_resources, room_for

log = logging.getLogger("imagemill.run")
TAKEN_SECONDS = 30.0
"""What other work holds is said when no image was done for so long: a run before may have ended a moment ago."""
AGAIN_SECONDS = 60.0
"""How often that is said."""
checks: list[Callable[[], None]] = []
"""Of this process, as Ray Data makes the callback itself and ships its class to every worker."""
actors: list[Any] = []
"""Handles of those at work."""


class Ended(ExecutionTimeoutError):  # type: ignore[misc]
    """The work was ended from outside; of this kind Ray Data prints no stack trace."""


class NoRoom(Ended):
    """The cluster has no room for the actors, and nothing goes on.

    Args: taken: whether its nodes would do, if other work did not hold them.
    """

    def __init__(self, message: str, taken: bool = False) -> None:
        super().__init__(message)
        self.taken = taken


class Steps(ExecutionCallback):  # type: ignore[misc]
    """Called by Ray Data at each step, several times a second."""

    def on_execution_step(self, executor: Any) -> None:
        pools = [op._actor_pool for op in executor._topology if isinstance(op, ActorPoolMapOperator)]
        actors[:] = [actor for pool in pools for actor in (*pool._running_actors, *pool._pending_actors.values())]
        for check in checks:
            check()


def placed() -> int:
    """How many actors of the work have a process on a node; the others wait for one."""
    from ray._private.state import actors as table

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    known = table(job_id=job)
    ours = [known[actor._actor_id.hex()] for actor in list(actors) if actor._actor_id.hex() in known]
    return sum(1 for actor in ours if actor["State"] in ("PENDING_CREATION", "ALIVE") and actor["Address"]["IPAddress"])


class Room:
    """Called again and again, looks at a run whose actors have no place, while no image is done.

    Where the nodes are too few, raises NoRoom after some time: an actor whose node died waits for another one with the
    images that it was given, and Ray Data waits for it without end. Where other work holds the nodes, says so, and raises
    NoRoom only if the run has a limit for its wait.

    Args: shared: whether others may work on the cluster.
    """

    def __init__(
        self, pool: Pool, done: Callable[[], float], patience_s: float, shared: bool = False, wait_s: float = 0
    ) -> None:
        self.pool, self.done, self.patience_s, self.shared, self.wait_s = pool, done, patience_s, shared, wait_s
        self.last, self.looked, self.told = done(), 0.0, -AGAIN_SECONDS
        self.done_at = self.since = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked, nodes = now, node_resources()
        if self.done() != self.last:
            self.last, self.done_at, self.since = self.done(), now, now
        elif room_for(self.pool, nodes) >= self.pool.workers:
            self.since = now
            if self.shared and now - self.done_at > TAKEN_SECONDS:
                self.look_for_others(now, nodes)
        elif now - self.since > self.patience_s:
            raise NoRoom(f"for {self.patience_s:.0f} s no image was done, and of {self.pool.on(nodes)}")

    def look_for_others(self, now: float, nodes: Nodes) -> None:
        """Say that other work holds what the actors need, again every minute. Raises: NoRoom after `wait_s`."""
        free, begun = free_resources(), placed()
        if begun >= self.pool.workers or room_for(self.pool, free):
            return
        said = f"{free_of(self.pool, free, nodes)}, and {begun} of {self.pool.workers} workers have a place"
        if self.wait_s and not begun and now - self.done_at > self.wait_s:
            raise NoRoom(f"other work holds the cluster, for {self.wait_s:.0f} s now: {said}", taken=True)
        if now - self.told > AGAIN_SECONDS:
            self.told = now
            limit = f"up to {self.wait_s:g} s" if self.wait_s else "without a limit (pool.wait_s sets one)"
            log.warning("%s: other work holds the rest. The run waits for it %s", said, limit)


def kill_actors() -> None:
    for actor in list(actors):
        # One that is gone must not keep the others.
        with suppress(Exception):
            ray.kill(actor)


@contextmanager
def watched(
    pool: Pool, done: Callable[[], float], patience_s: float, shared: bool = False, wait_s: float = 0
) -> Iterator[None]:
    """Ray Data's work within the `with` ends with NoRoom, or with what the handler of a signal raises.

    When it fails its actors are ended: Ray Data leaves that to whoever lets go of the last handle, which the exception's
    frames hold, and what comes next on the same Ray would wait for their CPUs without end.
    """

    def signalled() -> None:
        if waiting:
            log.warning("stopping; what was committed stays")
            raise Ended

    ray.data.DataContext.get_current().custom_execution_callback_classes = [Steps]
    with signals_wait(once=True) as waiting:
        checks[:] = [signalled, Room(pool, done, patience_s, shared, wait_s)]
        try:
            yield
        except BaseException:
            clean_up(kill_actors)
            raise
        finally:
            checks.clear()
            actors.clear()
