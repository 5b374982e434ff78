"""Fetch from many web servers at once: a few requests to each, and none to a server that asked to wait."""

import heapq
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from imagemill.pipeline.pauses import Refusals, quiet_seconds

Item = TypeVar("Item")
Result = TypeVar("Result")
SHORTEST_WAIT = 0.01
"""Seconds after which a host is looked at again whose pause is about to end."""
MOST_REFUSED = 32
"""Refused items of a host that may wait before the host gets no new requests. Otherwise, a server that accepts 10 requests a
second without a Retry-After would refuse each of thousands of items several times, and the last ones for too long."""


class HostBusy(Exception):
    """Raised by a fetch whose server is busy and wants to be asked again.

    Args:
        seconds: time until the next request.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy for {seconds:.1f} s")
        self.seconds = seconds


@dataclass(order=True)
class _Waiting(Generic[Item]):
    not_before: float
    item: Item = field(compare=False)
    refusals: Refusals = field(compare=False, default_factory=Refusals)


@dataclass
class _Host(Generic[Item]):
    """The items of a host that wait."""

    new: deque[_Waiting[Item]] = field(default_factory=deque)
    refused: list[_Waiting[Item]] = field(default_factory=list)
    """A heap: the item that may be fetched first comes first."""

    def wait_seconds(self) -> float:
        """Return the seconds until an item may be fetched; at most 0 if one may be fetched now."""
        may_ask_new = self.new and len(self.refused) < MOST_REFUSED
        return 0.0 if may_ask_new else self.refused[0].not_before - time.monotonic()

    def take(self) -> _Waiting[Item]:
        """Remove and return an item, when `wait_seconds` is over: a refused one if its wait is over, else a new one."""
        if self.refused and self.refused[0].not_before <= time.monotonic():
            return heapq.heappop(self.refused)
        return self.new.popleft()


class HostQueue(Generic[Item, Result]):
    """Iterate over the results of fetches, in the order in which they finish.

    Hosts take turns. An item that was refused by a busy host goes back to the queue and holds no thread while it waits, so
    it does not delay other items. All items of a host wait while the host wants no requests (`quiet_seconds`), and new ones
    also while MOST_REFUSED refused items wait.

    Args:
        items: what to fetch.
        host_of: returns the host of an item.
        fetch: fetches an item on a thread, given the earlier refusals of this item. It raises HostBusy to be called again.
        pool: the threads.
        threads: maximum number of fetches at once.
        per_host: maximum number of fetches at once from one host.
        has_room: whether memory allows to start a fetch. It must become true when all results are taken.
    """

    def __init__(
        self,
        items: Iterable[Item],
        host_of: Callable[[Item], str],
        fetch: Callable[[Item, Refusals], Result],
        pool: ThreadPoolExecutor,
        threads: int,
        per_host: int,
        has_room: Callable[[], bool],
    ) -> None:
        self._fetch, self._pool, self._has_room = fetch, pool, has_room
        self._threads, self._per_host = threads, per_host
        self._hosts: defaultdict[str, _Host[Item]] = defaultdict(_Host)
        """The hosts of the items that wait. The host that was asked last comes last."""
        self._count = 0
        for item in items:
            self._hosts[host_of(item)].new.append(_Waiting(0.0, item))
            self._count += 1
        self._running: Counter[str] = Counter()
        self._finished: deque[Future[Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        """Whether the consumer has stopped: then no further fetch starts."""

    def __iter__(self) -> Iterator[Result]:
        try:
            for _ in range(self._count):
                yield self._take().result()
        finally:
            with self._changed:
                self._closed = True

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
            has_slot = running < self._threads and running + len(self._finished) < 2 * self._threads
            if self._closed or not has_slot or not self._has_room():
                return None
            name, wait_seconds = self._next_host()
            if name is None:
                return wait_seconds
            host = self._hosts.pop(name)
            waiting = host.take()
            if host.new or host.refused:
                self._hosts[name] = host
            self._running[name] += 1
            self._pool.submit(self._run, name, waiting)

    def _next_host(self) -> tuple[str | None, float | None]:
        """Return a host that may be asked now; or None, and the seconds until one may be asked."""
        waits = []
        for name, host in self._hosts.items():
            if self._running[name] >= self._per_host:
                continue
            wait_seconds = max(quiet_seconds(name), host.wait_seconds())
            if wait_seconds <= 0:
                return name, None
            waits.append(max(wait_seconds, SHORTEST_WAIT))
        return None, min(waits, default=None)

    def _run(self, host: str, waiting: _Waiting[Item]) -> None:
        """Fetch an item on a thread, then start the next fetch."""
        future: Future[Result] = Future()
        refused = False
        try:
            future.set_result(self._fetch(waiting.item, waiting.refusals))
        except HostBusy as e:
            refused, waiting.not_before = True, time.monotonic() + e.seconds
        except BaseException as e:  # noqa: BLE001 - the consumer raises it
            future.set_exception(e)
        with self._changed:
            self._running[host] -= 1
            if refused:
                heapq.heappush(self._hosts[host].refused, waiting)
            else:
                self._finished.append(future)
            self._start()
            self._changed.notify()
