"""How far work over images is, as a person sees it: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

log = logging.getLogger("imagemill.progress")
LOG_SECONDS = 15.0
Batch = TypeVar("Batch")


def clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


def bar_of(done: ProgressColumn | None = None, transient: bool = False) -> Progress:
    """A bar on stderr whose tasks have a field `note`; disabled where that is no terminal.

    Args: done: how it is said what of a task is done; as a number of images when absent.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        done or MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=transient,
        disable=not sys.stderr.isatty(),
    )


def with_progress(batches: Iterable[Batch], total: int, images: Callable[[Batch], int]) -> Iterator[Batch]:
    """The batches as they are, while it is shown how many of `total` images those hold that were dealt with."""
    done, began = 0, time.monotonic()
    last_log = began
    with bar_of(transient=True) as bar:
        shown = bar.add_task("images", total=total, note="")
        for batch in batches:
            yield batch
            done += images(batch)
            now = time.monotonic()
            rate = done / max(now - began, 1e-9)
            note = f"{rate:.1f} images/s, {clock((total - done) / rate) if rate else '?'} left"
            bar.update(shown, completed=done, note=note)
            if bar.disable and now - last_log > LOG_SECONDS:
                last_log = now
                log.info("%d / %d images, %s", done, total, note)
