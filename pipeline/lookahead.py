"""Work that runs ahead of its consumer, with results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Value_co = TypeVar("Value_co", covariant=True)


class HasResult(Protocol[Value_co]):
    """A future, or anything else whose `result()` waits for a value."""

    def result(self) -> Value_co:
        """Return the value, or raise what the work raised."""


@dataclass(frozen=True)
class Ready(Generic[Result]):
    """A value that needs no work, where other items need a future."""

    value: Result

    def result(self) -> Result:
        """Return the value."""
        return self.value


def map_ahead(
    submit: Callable[[Item], HasResult[Result]],
    items: Iterable[Item],
    depth: int,
    size_of: Callable[[Item], int] = lambda _: 0,
    max_size: int = 0,
) -> Iterator[Result]:
    """Yield the result of `submit(item)` for each item, in the order of the items.

    The iterator submits up to `depth` further items before it waits for a result, so memory is bounded by the results of
    `depth` + 1 items. If the work of an item raises, the iterator raises that exception in place of the result.

    Args:
        submit: starts the work of one item, usually on a thread pool.
        items: consumed lazily.
        depth: maximum number of items that are in work or finished, in addition to the item whose result comes next; 0
            processes one item at a time.
        size_of: returns the size of an item's result, for example in bytes.
        max_size: maximum size of all results that are in work or finished. A larger result is in work alone.
    """
    pending: deque[tuple[HasResult[Result], int]] = deque()
    total_size = 0
    for item in items:
        size = size_of(item)
        while pending and total_size + size > max_size:
            future, future_size = pending.popleft()
            total_size -= future_size
            yield future.result()
        pending.append((submit(item), size))
        total_size += size
        if len(pending) > depth:
            future, future_size = pending.popleft()
            total_size -= future_size
            yield future.result()
    while pending:
        yield pending.popleft()[0].result()
