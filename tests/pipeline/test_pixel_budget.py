"""The pixel budget of a worker: which images share it, and which use all of it."""

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from imagemill.pipeline.item import Item
from imagemill.pipeline.pixel_budget import PixelBudget


@given(st.lists(st.integers(0, 40)), st.integers(1, 4))
def test_split_keeps_order_and_isolates_large_images(sizes: list[int], scale: int) -> None:
    """Items stay in order; a large image is alone in its group; groups are as long as possible."""
    budget = PixelBudget(model=10, waiting=10, largest_shared=80, scale=scale)
    items = [Item({}, pixels=size) for size in sizes]
    groups = [[item.pixels for item in group] for group in budget.split(items)]
    assert list(chain.from_iterable(groups)) == sizes
    large = [size * scale**2 > 80 for size in sizes]
    assert [group for group in groups if len(group) == 1 and group[0] * scale**2 > 80] == [
        [size] for size, is_large in zip(sizes, large, strict=True) if is_large
    ]
    assert all(len(group) == 1 or max(group) * scale**2 <= 80 for group in groups)
    is_ordinary = [max(group) * scale**2 <= 80 for group in groups]
    assert not any(left and right for left, right in pairwise(is_ordinary))


def test_split_takes_items_lazily() -> None:
    """A large image is taken from its source only when the group before it is finished."""
    taken_items: list[int] = []

    def items():
        for size in (1, 2, 100, 3):
            taken_items.append(size)
            yield Item({}, pixels=size)

    budget = PixelBudget(model=10, waiting=10, largest_shared=50, scale=1)
    groups = budget.split(items())
    first = next(groups)
    assert next(first).pixels == 1
    assert taken_items == [1]
    assert [item.pixels for item in first] == [2]
    assert taken_items == [1, 2, 100]


def test_batch_images_counts_pixels_that_come_out() -> None:
    budget = PixelBudget(model=1000, waiting=0, largest_shared=0, scale=2)
    assert [budget.batch_images(pixels) for pixels in (50, 250, 251, 10_000)] == [5, 1, 1, 1]


def test_budget_of_worker_depends_on_device_and_share() -> None:
    cpu, half = PixelBudget.of_worker("cpu", 0, 2, 1), PixelBudget.of_worker("cuda", 0.5, 4, 1)
    assert (cpu.model, cpu.largest_shared) == (2_000_000, 12_000_000)
    assert (half.model, half.largest_shared) == (32_000_000, 125_000_000)
