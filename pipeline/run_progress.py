"""Progress of a run: the driver adds up the counts of workers and shows images, rate, time left and rejects."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from imagemill.pipeline.channel import Channel
from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.pool import WITHOUT_CUDA
from imagemill.pipeline.progress import LOG_SECONDS, clock, progress_bar, rate_text

log = logging.getLogger("imagemill.run")
POLL_SECONDS = 0.5
ON_CPU = (
    "the model runs on the CPU, with one torch thread for each CPU of a worker. Check the GPU driver and the build of torch "
    "on the nodes, or set pool.gpu=false"
)


def sum_counts(channel: Channel, run_id: str) -> Counter[str]:
    """Return the sums of the counts of all workers; for memory (…_mb), the maximum."""
    counts: Counter[str] = Counter()
    for content in channel.read(f"{run_id}/"):
        most = {key: max(counts[key], value) for key, value in content.items() if key.endswith("_mb")}
        counts.update(content)
        counts.update({key: value - counts[key] for key, value in most.items()})
    return counts


class RunProgress:
    """Shows the progress of a run within a `with` block: a bar on a terminal, log lines elsewhere, and a gauge.

    Args:
        task: name of the task.
        run_id: id of the run.
        planned: images of the plan.
        channel: what the workers publish.
    """

    def __init__(self, task: str, run_id: str, planned: int, channel: Channel) -> None:
        self.task, self.run_id, self.planned, self.channel = task, run_id, planned, channel
        self.report_waiting: Callable[[int], None] | None = None
        """Called with the number of images that are not processed yet."""
        self.counts: Counter[str] = Counter()
        self._has_warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="progress")
        self._began = time.monotonic()
        self.first_image_s = 0.0
        """Seconds until the first image was processed."""

    def done(self) -> int:
        """Return the number of processed images."""
        return int(self.counts["ok"] + self.counts["rejected"])

    def rate(self) -> float:
        """Return images per second since the first image was processed."""
        done = self.done()
        if not done:
            return 0.0
        elapsed = time.monotonic() - self._began
        self.first_image_s = self.first_image_s or max(0.0, elapsed - POLL_SECONDS)
        return done / max(POLL_SECONDS, elapsed - self.first_image_s)

    def _poll(self) -> None:
        try:
            self.counts = sum_counts(self.channel, self.run_id)
        except Exception as e:  # noqa: BLE001 - Ray's core raises its own errors without a connection
            log.debug("progress is unknown: %s", e)

    def _watch(self) -> None:
        last_log = time.monotonic()
        with progress_bar() as bar:
            shown = bar.add_task(self.task, total=self.planned, note="starting")
            while True:
                stopped = self._stop.wait(POLL_SECONDS)
                self._poll()
                self._warn_without_cuda()
                done, rejected = self.done(), int(self.counts["rejected"])
                rate = self.rate()
                if self.report_waiting:
                    self.report_waiting(max(0, self.planned - done))
                left = clock((self.planned - done) / rate) if rate else "?"
                note = f"{rate_text(rate)}, {rejected} rejected, {left} left"
                bar.update(shown, completed=min(done, self.planned), note=note)
                if bar.disable and (stopped or time.monotonic() - last_log > LOG_SECONDS):
                    last_log = time.monotonic()
                    counts = {"done": min(done, self.planned), "planned": self.planned, "rejected": rejected}
                    log.info("%s: %d / %d images, %s", self.task, counts["done"], self.planned, note, extra=counts)
                if stopped:
                    return

    def _warn_without_cuda(self) -> None:
        """Warn once if workers that have a GPU run the model on the CPU."""
        if self.counts["without_cuda"] and not self._has_warned:
            self._has_warned = True
            log.warning("%s: %s", WITHOUT_CUDA, ON_CPU)

    def __enter__(self) -> "RunProgress":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        # After a failure of the engine, the channel may never answer.
        self._thread.join(1 if isinstance(error, RunFailed) else 10)
