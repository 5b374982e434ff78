"""Show the progress of work over images: a bar on a terminal, otherwise a log line every 15 seconds."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

log = logging.getLogger("imagemill.progress")
LOG_SECONDS = 15.0
SLOW_RATE = 0.1
"""Images per second below which the progress shows seconds per image."""
Batch = TypeVar("Batch")


def clock(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    return str(timedelta(seconds=max(0, round(seconds))))


def rate_text(images_per_s: float) -> str:
    """Format a rate; a slow one as seconds per image, because 0.0 images/s says nothing."""
    if 0 < images_per_s < SLOW_RATE:
        return f"{1 / images_per_s:,.1f} s per image"
    return f"{images_per_s:,.1f} images/s"


def progress_bar(done: "ProgressColumn | None" = None, transient: bool = False) -> "Progress":
    """Return a progress bar on stderr whose tasks have a field `note`.

    The bar is disabled if stderr is not a terminal, or if informational messages are not logged either.

    Args:
        done: column that shows how much is done; default: the number of images.
        transient: whether the bar disappears at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        done or MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=transient,
        disable=not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)),
    )


def with_progress(task: str, batches: Iterable[Batch], total: int, images: Callable[[Batch], int]) -> Iterator[Batch]:
    """Yield batches unchanged, and show how many of `total` images the consumed ones hold.

    Args:
        task: title of the bar: the command that does the work.
        batches: any iterable.
        total: number of images in all batches.
        images: returns the number of images in a batch.
    """
    done, began = 0, time.monotonic()
    last_log = began
    with progress_bar(transient=True) as bar:
        shown = bar.add_task(task, total=total, note="")
        for batch in batches:
            yield batch
            done += images(batch)
            now = time.monotonic()
            rate = done / max(now - began, 1e-9)
            note = f"{rate_text(rate)}, {clock((total - done) / rate) if rate else '?'} left"
            bar.update(shown, completed=done, note=note)
            if bar.disable and now - last_log > LOG_SECONDS:
                last_log = now
                log.info("%s: %d / %d images, %s", task, done, total, note)
