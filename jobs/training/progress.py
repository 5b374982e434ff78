"""The progress of a training: one bar on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import Any, TypeVar

from rich.progress import TextColumn

from imagemill.pipeline.cluster.contact import begin, wait_for_answer
from imagemill.pipeline.cluster.ray_channel import RayChannel
from imagemill.pipeline.progress import LOG_SECONDS, clock, progress_bar, rate_text

log = logging.getLogger("imagemill.train")
POLL_SECONDS = 0.5
Result = TypeVar("Result")


def run_with_progress(work: Callable[[], Result], key: str, epochs: int, steps_per_epoch: int) -> Result:
    """Run `work` in another thread, and show what rank 0 publishes until it ends.

    In the main thread, Ray Train would replace the signal handlers of this program.

    Args:
        work: the training.
        key: under which rank 0 publishes its progress.
        epochs: of the training.
        steps_per_epoch: of each worker.

    Raises:
        ContactLost: when Ray does not answer any more.
        Exception: any error of `work`.
    """
    ending = begin(work)
    last_log, worker = time.monotonic(), None
    with progress_bar(TextColumn("{task.percentage:.0f} %")) as bar:
        shown = bar.add_task("train: starting", total=1.0, note="")
        while not ending.done():
            wait([ending], POLL_SECONDS)
            for figures in wait_for_answer(partial(RayChannel().read, key)):
                if worker not in (None, figures["pid"]):
                    log.warning("a worker died; the training continues after epoch %d", figures["resumed_at"])
                worker = figures["pid"]
                where = f"train: epoch {figures['epoch']}/{epochs}"
                note = format_progress(figures, steps_per_epoch)
                bar.update(shown, completed=figures["done"], description=where, note=note)
                if bar.disable and time.monotonic() - last_log > LOG_SECONDS:
                    last_log = time.monotonic()
                    log.info("%s, %s", where, note)
    return ending.result()


def format_progress(figures: dict[str, Any], steps_per_epoch: int) -> str:
    """Format the progress that a worker published, in one line."""
    quality = "" if figures["psnr_db"] is None else f"validation {figures['psnr_db']:.2f} dB, "
    return (
        f"step {figures['epoch_step']}/{steps_per_epoch}, loss {figures['loss']:.4g}, {quality}"
        f"{rate_text(figures['images_per_s'])}, {clock(figures['left_s'])} left"
    )
