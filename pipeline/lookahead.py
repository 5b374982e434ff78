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


def map_ahead(submit: Callable[[Item], HasResult[Result]], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """Yield the result of `submit(item)` for each item, in the order of the items.

    The iterator submits up to `depth` further items before it waits for a result, so memory is bounded by the results of
    `depth` + 1 items. An exception of the work is raised in its turn.

    Args:
        submit: starts the work of one item, usually on a thread pool.
        items: consumed lazily.
        depth: number of items that may be in work, or finished and not yet yielded, next to the one that is waited for; 0
            works on one item at a time.
    """
    ahead: deque[HasResult[Result]] = deque()
    for item in items:
        ahead.append(submit(item))
        if len(ahead) > depth:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
