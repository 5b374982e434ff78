"""map_ahead: order, bound and errors of work that runs ahead of its consumer."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.pipeline.lookahead import HasResult, Ready, map_ahead


@given(st.lists(st.integers()), st.integers(0, 8), st.integers(0, 8))
def test_map_ahead_keeps_order_and_bound(items: list[int], depth: int, taken_count: int) -> None:
    """Results come in order, and at most `depth` items are submitted ahead of the consumer."""
    submitted_items: list[int] = []

    def submit(item: int) -> HasResult[int]:
        submitted_items.append(item)
        return Ready(item * 2)

    results = map_ahead(submit, items, depth)
    for number in range(min(taken_count, len(items))):
        assert next(results) == items[number] * 2
        assert len(submitted_items) <= number + 1 + depth
    assert list(results) == [item * 2 for item in items[taken_count:]]
    assert submitted_items == items


def test_map_ahead_raises_an_error_in_its_turn() -> None:
    def work(item: int) -> int:
        return 6 // item

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(lambda item: pool.submit(work, item), [1, 2, 0, 3], depth=3)
        assert [next(results), next(results)] == [6, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_map_ahead_with_depth_0_finishes_each_item_first() -> None:
    order: list[str] = []

    def items() -> Iterator[int]:
        for item in (1, 2):
            order.append(f"item {item}")
            yield item

    def submit(item: int) -> "Future[int]":
        order.append(f"submit {item}")
        future: Future[int] = Future()
        future.set_result(item)
        return future

    for result in map_ahead(submit, items(), depth=0):
        order.append(f"result {result}")
    assert order == ["item 1", "submit 1", "result 1", "item 2", "submit 2", "result 2"]


@given(st.lists(st.integers(0, 12)), st.integers(0, 5), st.integers(0, 10))
def test_map_ahead_bounds_the_size_in_work(sizes: list[int], depth: int, max_size: int) -> None:
    """Submitted results that are not yet taken have at most `max_size`, or are one larger result."""
    ahead: list[int] = []

    def submit(size: int) -> HasResult[int]:
        ahead.append(size)
        assert sum(ahead) <= max_size or len([size for size in ahead if size]) == 1
        return Ready(size)

    for size in map_ahead(submit, sizes, depth, lambda size: size, max_size):
        assert ahead.pop(0) == size
