"""End a worker process that is stuck on an image. The engine replaces the process and runs its block again."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger("imagemill.run")
LOOK_SECONDS = 1.0
"""Interval at which the watchdog looks at the work of the process; shorter for a short time limit."""
GIL_SECONDS = 10.0
"""Seconds over the time limit after which a process ends whose native code keeps the GIL, so that no thread can look."""
STDERR = 2


@dataclass(eq=False, slots=True)
class Step:
    """One image, or a batch of images, in one stage."""

    stage: str
    image_ids: tuple[str, ...]
    limit_s: float
    ends_s: float
    """When the time limit is over, by the clock of the watchdog."""


class Watchdog:
    """Ends this process if a step takes longer than its time limit.

    Python cannot end a thread that is stuck, in particular not in native code, so the whole process ends.

    Args:
        limit_s: time limit of one image in one stage, in seconds.
        record: called with the steps that are over their limit, right before the process ends. None of them can end
            meanwhile.
    """

    def __init__(self, limit_s: float, record: Callable[[list[Step]], None]) -> None:
        self.limit_s = limit_s
        self.interval_s = min(LOOK_SECONDS, limit_s / 10)
        self._record = record
        self._steps: set[Step] = set()
        self._clock_s = 0.0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Watch this process, on a thread that ends with the process."""
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @contextmanager
    def step(self, stage: str, *image_ids: str, extra_s: float = 0) -> Iterator[Callable[[], None]]:
        """Limit the time of a `with` block, and yield a function that starts its time again.

        Args:
            stage: what the block does with the images.
            image_ids: the images. A batch has the time of all its images.
            extra_s: seconds that are added to the limit.
        """
        limit_s = len(image_ids) * self.limit_s + extra_s
        step = Step(stage, image_ids, limit_s, self._clock_s + limit_s)

        def restart() -> None:
            step.ends_s = self._clock_s + limit_s

        with self._lock:
            self._steps.add(step)
        try:
            yield restart
        finally:
            with self._lock:
                self._steps.remove(step)

    def advance(self, elapsed_s: float, cpu_s: float) -> list[Step]:
        """Advance the clock, and return the steps that are over their limit.

        The clock counts only time in which the process could work. If a look is late, the process was stopped (SIGSTOP, a
        suspended machine or container), or native code kept the GIL, which then used the CPU.

        Args:
            elapsed_s: seconds since the last look.
            cpu_s: CPU-seconds of this process since the last look.
        """
        self._clock_s += min(elapsed_s, max(2 * self.interval_s, cpu_s))
        return [step for step in self._steps if self._clock_s > step.ends_s]

    def _watch(self) -> None:
        last = time.monotonic(), time.process_time()
        while True:
            self._arm()
            time.sleep(self.interval_s)
            now = time.monotonic(), time.process_time()
            with self._lock:
                if late := self.advance(now[0] - last[0], now[1] - last[1]):
                    self._end(late)
            last = now

    def _arm(self) -> None:
        """End the process from a C thread, which needs no GIL, unless this method is called again in time."""
        with self._lock:
            limit_s = max((step.limit_s for step in self._steps), default=self.limit_s)
        faulthandler.dump_traceback_later(limit_s + GIL_SECONDS, exit=True, file=STDERR)

    def _end(self, late: list[Step]) -> None:
        """Record the steps that are over their limit, and end the process."""
        try:
            for step in late:
                images = ", ".join(step.image_ids)
                log.warning("%s did not end within %g s: image_id %s. This worker ends", step.stage, step.limit_s, images)
            self._record(late)
        except Exception:
            log.exception("the timeout was not recorded")
        finally:
            os._exit(1)
