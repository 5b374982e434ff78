"""How far a run is: actors count, the driver adds up and shows images done / planned, rate, ETA and rejects."""

import json
import logging
import resource
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.metrics import ActorMetrics, waiting_gauge

log = logging.getLogger("imagemill.run")
NAMESPACE = b"imagemill"
LOG_SECONDS = 15.0
POLL_SECONDS = 0.5


def publish(key: str, content: dict[str, Any]) -> None:
    """Put what a process has to tell into Ray's key-value store, in the place of what it told before.

    The store is Ray's internal one; the public way, an actor that counts, costs a process and its start.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    try:
        _internal_kv_put(key.encode(), json.dumps(content).encode(), namespace=NAMESPACE)
    except Exception as e:  # noqa: BLE001 - a figure that is late must cost nothing else
        log.warning("progress not published: %s", e)


def published(prefix: str) -> list[dict[str, Any]]:
    """What was published under the keys that begin so."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    keys = _internal_kv_list(prefix.encode(), namespace=NAMESPACE)
    return [json.loads(_internal_kv_get(key, namespace=NAMESPACE) or b"{}") for key in keys]


class Tally:
    """Counts and seconds of one actor, published about once a second: to the driver, and as metrics."""

    def __init__(self, task: str, run_id: str) -> None:
        self._key = f"{run_id}/{secrets.token_hex(8)}"
        self._counts: Counter[str] = Counter()
        self._shown: Counter[str] = Counter()
        self._metrics = ActorMetrics(task, run_id)
        self._lock = threading.Lock()
        self._published = 0.0

    def ready(self) -> None:
        """The model is loaded: what the process takes before it has an image."""
        self._counts["idle_mb"] = peak_rss_mb()

    def add(self, **counts: float) -> None:
        with self._lock:
            self._counts.update(counts)
            due = time.monotonic() - self._published > 1
            if due:
                self._published = time.monotonic()
        if due:
            self.flush()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._metrics.observe(stage, seconds)
            self.add(**{f"{stage}_s": seconds})

    def flush(self) -> None:
        with self._lock:
            self._counts["rss_mb"] = peak_rss_mb()
            counts = dict(self._counts)
            self._metrics.add({name: count - self._shown[name] for name, count in counts.items()})
            self._shown = Counter(counts)
        publish(self._key, counts)


def peak_rss_mb() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def total(run_id: str) -> Counter[str]:
    """What all actors of a run have counted; of their memory (…_mb) the most that one had."""
    counts: Counter[str] = Counter()
    for content in published(f"{run_id}/"):
        most = {key: max(counts[key], value) for key, value in content.items() if key.endswith("_mb")}
        counts.update(content)
        counts.update({key: value - counts[key] for key, value in most.items()})
    return counts


def clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


class Shown:
    """`with Shown(task, run_id, planned):` shows the progress: a bar on a terminal, log lines elsewhere, and a gauge."""

    def __init__(self, task: str, run_id: str, planned: int) -> None:
        self.run_id, self.planned = run_id, planned
        self._waiting = waiting_gauge(task, run_id)
        self.counts: Counter[str] = Counter()
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

    def _watch(self) -> None:
        terminal = sys.stderr.isatty()
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not terminal,
        )
        last_log = time.monotonic()
        with bar:
            shown = bar.add_task("images", total=self.planned, note="starting")
            while True:
                stopped = self._stop.wait(POLL_SECONDS)
                self.counts = total(self.run_id)
                done, rejected = self.done(), int(self.counts["rejected"])
                rate = self.rate()
                self._waiting.set(max(0, self.planned - done))
                left = clock((self.planned - done) / rate) if rate else "?"
                note = f"{rate:.1f} images/s, {rejected} rejected, {left} left"
                bar.update(shown, completed=min(done, self.planned), note=note)
                if not terminal and (stopped or time.monotonic() - last_log > LOG_SECONDS):
                    last_log = time.monotonic()
                    counts = {"done": min(done, self.planned), "planned": self.planned, "rejected": rejected}
                    log.info("%d / %d images, %s", counts["done"], self.planned, note, extra=counts)
                if stopped:
                    return

    def __enter__(self) -> "Shown":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
