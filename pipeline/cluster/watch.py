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

from pipeline.cluster.connection import signals_wait
from pipeline.cluster.pool import LOOK_SECONDS, Pool, node_resources, room_for

log = logging.getLogger("imagemill.run")
checks: list[Callable[[], None]] = []
"""Of this process, as Ray Data makes the callback itself and ships its class to every worker."""
actors: list[Any] = []
"""Handles of those at work."""


class Ended(ExecutionTimeoutError):  # type: ignore[misc]
    """The work was ended from outside; of this kind Ray Data prints no stack trace."""


class NoRoom(Ended):
    """The cluster has no room for the actors, and nothing goes on."""


class Steps(ExecutionCallback):  # type: ignore[misc]
    """Called by Ray Data at each step, several times a second."""

    def on_execution_step(self, executor: Any) -> None:
        pools = [op._actor_pool for op in executor._topology if isinstance(op, ActorPoolMapOperator)]
        actors[:] = [actor for pool in pools for actor in (*pool._running_actors, *pool._pending_actors.values())]
        for check in checks:
            check()


class Room:
    """Called again and again, raises NoRoom when for so long no image was done and not all actors have a place.

    An actor whose node died waits for another one with the images that it was given, and Ray Data waits for it without end.
    """

    def __init__(self, pool: Pool, done: Callable[[], float], patience_s: float) -> None:
        self.pool, self.done, self.patience_s = pool, done, patience_s
        self.last, self.since, self.looked = done(), time.monotonic(), 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked, nodes = now, node_resources()
        if self.done() != self.last or room_for(self.pool, nodes) >= self.pool.actors:
            self.last, self.since = self.done(), now
        elif now - self.since > self.patience_s:
            raise NoRoom(f"for {self.patience_s:.0f} s no image was done, and of {self.pool.on(nodes)}")


@contextmanager
def watched(pool: Pool, done: Callable[[], float], patience_s: float) -> Iterator[None]:
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
        checks[:] = [signalled, Room(pool, done, patience_s)]
        try:
            yield
        except BaseException:
            for actor in list(actors):
                # One that is gone, or a Ray that is, must not hide what happened.
                with suppress(Exception):
                    ray.kill(actor)
            raise
        finally:
            checks.clear()
            actors.clear()
