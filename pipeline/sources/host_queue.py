"""Fetch from many web servers at once: a few requests to each, and none to a server that asked to wait."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from imagemill.pipeline.pauses import quiet_seconds

Item = TypeVar("Item")
Result = TypeVar("Result")
SHORTEST_WAIT = 0.01
"""Seconds after which a host is looked at again whose pause is about to end."""


class HostBusy(Exception):
    """Raised by a fetch whose server is busy and wants to be asked again.

    Args:
        seconds: time until the next request.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy for {seconds:.1f} s")
        self.seconds = seconds


@dataclass
class _Waiting(Generic[Item]):
    item: Item
    refusals: int = 0
    not_before: float = 0.0


class HostQueue(Generic[Item, Result]):
    """Iterate over the results of fetches, in the order in which they finish.

    Hosts take turns. An item whose host is busy goes back to the queue and holds no thread while it waits, so it does not
    delay items of other hosts.

    Args:
        items: what to fetch.
        host_of: returns the host of an item.
        fetch: fetches an item on a thread, given the number of its refusals so far. It raises HostBusy to be called again.
        pool: the threads.
        threads: maximum number of fetches at once.
        per_host: maximum number of fetches at once from one host.
        has_room: whether memory allows to start a fetch. It must become true when all results are taken.
    """

    def __init__(
        self,
        items: Iterable[Item],
        host_of: Callable[[Item], str],
        fetch: Callable[[Item, int], Result],
        pool: ThreadPoolExecutor,
        threads: int,
        per_host: int,
        has_room: Callable[[], bool],
    ) -> None:
        self._fetch, self._pool, self._has_room = fetch, pool, has_room
        self._threads, self._per_host = threads, per_host
        self._hosts: dict[str, deque[_Waiting[Item]]] = {}
        """The items of each host that wait, in order. The host that was asked last comes last."""
        self._count = 0
        for item in items:
            self._hosts.setdefault(host_of(item), deque()).append(_Waiting(item))
            self._count += 1
        self._running: Counter[str] = Counter()
        self._finished: deque[Future[Result]] = deque()
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Result]:
        try:
            for _ in range(self._count):
                yield self._take().result()
        finally:
            with self._changed:
                self._hosts.clear()

    def _take(self) -> "Future[Result]":
        """Wait for a finished fetch and return it."""
        with self._changed:
            wait_seconds = self._start()
            while not self._finished:
                self._changed.wait(wait_seconds)
                wait_seconds = self._start()
            return self._finished.popleft()

    def _start(self) -> float | None:
        """Start as many fetches as the limits allow; return the seconds until a host may be asked that wants to wait.

        As many finished fetches as there are threads may wait for the consumer.
        """
        while True:
            running = self._running.total()
            if running >= self._threads or running + len(self._finished) >= 2 * self._threads or not self._has_room():
                return None
            host, wait_seconds = self._next_host()
            if host is None:
                return wait_seconds
            waiting, others = self._hosts[host].popleft(), self._hosts.pop(host)
            if others:
                self._hosts[host] = others
            self._running[host] += 1
            self._pool.submit(self._run, host, waiting)

    def _next_host(self) -> tuple[str | None, float | None]:
        """Return a host that may be asked now; or None, and the seconds until one may be asked."""
        waits = []
        now = time.monotonic()
        for host, items in self._hosts.items():
            if self._running[host] >= self._per_host:
                continue
            wait_seconds = max(quiet_seconds(host), items[0].not_before - now)
            if wait_seconds <= 0:
                return host, None
            waits.append(max(wait_seconds, SHORTEST_WAIT))
        return None, min(waits, default=None)

    def _run(self, host: str, waiting: _Waiting[Item]) -> None:
        """Fetch an item on a thread, then start the next fetch."""
        future: Future[Result] = Future()
        retry = None
        try:
            future.set_result(self._fetch(waiting.item, waiting.refusals))
        except HostBusy as e:
            retry = _Waiting(waiting.item, waiting.refusals + 1, time.monotonic() + e.seconds)
        except BaseException as e:  # noqa: BLE001 - the consumer raises it
            future.set_exception(e)
        with self._changed:
            self._running[host] -= 1
            if retry:
                self._hosts.setdefault(host, deque()).appendleft(retry)
            else:
                self._finished.append(future)
            self._start()
            self._changed.notify()
