"""Bound the bytes of files whose size is known only while they arrive."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FETCHED_BYTES = 256_000_000
"""Bytes of encoded images that a worker fetches ahead, up to the next stage. One larger image is fetched alone."""
LOOK_SECONDS = 1.0
"""Interval at which a fetch that waits for memory reports that it is not stuck."""


class ByteBudget:
    """Counts the bytes of files from their first byte until `release`.

    A fetch that finds the budget used up waits in the middle of its file. The oldest unfinished fetch never waits, so one
    file always gets ready and makes room; the limit can be exceeded by one file.

    Args:
        limit: maximum number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes = 0
        self._unfinished: dict[object, int] = {}
        """Bytes of each unfinished fetch, the oldest first."""
        self._changed = threading.Condition()

    @property
    def has_room(self) -> bool:
        """Whether another fetch may start."""
        return self._bytes < self.limit

    @contextmanager
    def fetch(self, report_progress: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes the number of bytes of each chunk, and waits until there is room for them.

        The bytes of a fetch that fails are released.

        Args:
            report_progress: called every LOOK_SECONDS while the function waits.
        """
        key = object()

        def take(count: int) -> None:
            with self._changed:
                while self._bytes + count > self.limit and next(iter(self._unfinished)) is not key:
                    self._changed.wait(LOOK_SECONDS)
                    report_progress()
                self._bytes += count
                self._unfinished[key] += count

        with self._changed:
            self._unfinished[key] = 0
        try:
            yield take
        except BaseException:
            with self._changed:
                self._bytes -= self._unfinished[key]
            raise
        finally:
            with self._changed:
                del self._unfinished[key]
                self._changed.notify_all()

    def release(self, count: int) -> None:
        """Give back the bytes of a finished file."""
        with self._changed:
            self._bytes -= count
            self._changed.notify_all()
