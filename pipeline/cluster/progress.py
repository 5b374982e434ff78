"""How far a run is: the driver adds up what actors counted, and shows images done / planned, rate, ETA and rejects."""

import logging
import threading
import time
from collections import Counter
from types import TracebackType

from imagemill.pipeline.cluster.contact import contact
from imagemill.pipeline.cluster.metrics import waiting_gauge
from imagemill.pipeline.cluster.pool import WITHOUT_CUDA
from imagemill.pipeline.cluster.tally import published
from imagemill.pipeline.progress import LOG_SECONDS, clock, progress_bar, rate_text

log = logging.getLogger("imagemill.run")
POLL_SECONDS = 0.5
ON_CPU = (
    "the model runs on the CPU, with one torch thread for each CPU of an actor. Check the GPU driver and the build of torch "
    "on the nodes, or set pool.gpu=false"
)


def total(run_id: str) -> Counter[str]:
    """What all actors of a run have counted; of their memory (…_mb) the most that one had."""
    counts: Counter[str] = Counter()
    for content in published(f"{run_id}/"):
        most = {key: max(counts[key], value) for key, value in content.items() if key.endswith("_mb")}
        counts.update(content)
        counts.update({key: value - counts[key] for key, value in most.items()})
    return counts


class RunProgress:
    """`with RunProgress(task, run_id, planned):` shows it: a bar on a terminal, log lines elsewhere, and a gauge."""

    def __init__(self, task: str, run_id: str, planned: int) -> None:
        self.task, self.run_id, self.planned = task, run_id, planned
        self._waiting = waiting_gauge(task, run_id)
        self.counts: Counter[str] = Counter()
        self._has_warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="progress")
        self._began = time.monotonic()
        self.first_image_s = 0.0
        """Seconds until the first image was done."""

    def done(self) -> int:
        return int(self.counts["ok"] + self.counts["rejected"])

    def rate(self) -> float:
        """Images a second since the first one was done."""
        done = self.done()
        if not done:
            return 0.0
        elapsed = time.monotonic() - self._began
        self.first_image_s = self.first_image_s or max(0.0, elapsed - POLL_SECONDS)
        return done / max(POLL_SECONDS, elapsed - self.first_image_s)

    def _ask(self) -> None:
        """Add up what was counted; that Ray answers at all is what a run is watched by."""
        try:
            self.counts = total(self.run_id)
        except Exception as e:  # noqa: BLE001 - Ray's core raises errors of its own when it has no connection
            log.debug("no progress known: %s", e)
        else:
            contact.heard()

    def _watch(self) -> None:
        last_log = time.monotonic()
        with progress_bar() as bar:
            shown = bar.add_task(self.task, total=self.planned, note="starting")
            while True:
                stopped = self._stop.wait(POLL_SECONDS)
                self._ask()
                self._warn_without_cuda()
                done, rejected = self.done(), int(self.counts["rejected"])
                rate = self.rate()
                self._waiting.set(max(0, self.planned - done))
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
        """Warn once when actors that have a GPU run the model on a CPU."""
        if self.counts["without_cuda"] and not self._has_warned:
            self._has_warned = True
            log.warning("%s: %s", WITHOUT_CUDA, ON_CPU)

    def __enter__(self) -> "RunProgress":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if not contact.lost:
            self._thread.join(timeout=10)
