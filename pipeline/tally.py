"""Count what workers do, and publish the counts to the driver."""

import resource
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imagemill.pipeline.channel import Channel, StageMetrics
from imagemill.pipeline.etags import unchecked_buckets

DEVICES = ("cpu", "cuda")
ETAGS = "etags:"
"""Prefix of a count that names a bucket in which a worker met etags that are not MD5s."""


class Tally:
    """Counts and seconds of one worker, published about once a second to the driver and as metrics.

    Args:
        run_id: id of the run.
        channel: publishes the counts to the driver.
        metrics: what the engine serves to a monitoring system, if it does.
    """

    def __init__(self, run_id: str, channel: Channel, metrics: StageMetrics | None = None) -> None:
        self._channel = channel
        self._key = f"{run_id}/{secrets.token_hex(8)}"
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._metrics = metrics
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._published = 0.0

    def ready(self, device: str, gpu: bool) -> None:
        """Record that the model is loaded, and the memory of the process before its first image.

        Args:
            device: one of DEVICES, where the model runs.
            gpu: whether the engine gave the worker a GPU.
        """
        self._counts["idle_mb"] = peak_rss_mb()
        self._counts[f"on_{device}"] = 1
        self._counts["without_cuda"] = int(gpu and device == "cpu")

    def add(self, **counts: float) -> None:
        """Add to counts by name, and publish all counts if the last publication is a second ago."""
        with self._lock:
            self._counts.update(counts)
            is_due = time.monotonic() - self._published > 1
            if is_due:
                self._published = time.monotonic()
        if is_due:
            self.flush()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the duration of a `with` block to the seconds of a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            if self._metrics:
                self._metrics.observe(stage, seconds)
            self.add(**{f"{stage}_s": seconds})

    def flush(self) -> None:
        """Publish all counts."""
        # With a separate lock, threads that count do not wait for the store, and the newest counts are published last.
        with self._flushing:
            with self._lock:
                self._counts["rss_mb"] = peak_rss_mb()
                self._counts.update(
                    {f"{ETAGS}{place}:": 1 for place in unchecked_buckets() if f"{ETAGS}{place}:" not in self._counts}
                )
                counts = dict(self._counts)
            if self._metrics:
                self._metrics.add({name: count - self._reported[name] for name, count in counts.items()})
                self._reported = Counter(counts)
            self._channel.publish(self._key, counts)


def peak_rss_mb() -> int:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000
