"""What actors count, and tell the driver through Ray's key-value store."""

import json
import logging
import resource
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imagemill.pipeline.cluster.metrics import WorkerMetrics
from imagemill.pipeline.etags import doubted

log = logging.getLogger("imagemill.run")
NAMESPACE = b"imagemill"
DEVICES = ("cpu", "cuda")
ETAGS = "etags:"
"""Before the name of a bucket whose etags an actor found to be no MD5s."""


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


def forget(prefix: str) -> None:
    """Take back what was published under the keys that begin so: a cluster that stays would keep it of every run."""
    from ray.experimental.internal_kv import _internal_kv_del

    try:
        _internal_kv_del(prefix.encode(), del_by_prefix=True, namespace=NAMESPACE)
    except Exception as e:  # noqa: BLE001 - as in publish
        log.debug("not forgotten: %s", e)


class Tally:
    """Counts and seconds of one actor, published about once a second: to the driver, and as metrics."""

    def __init__(self, task: str, run_id: str) -> None:
        self._key = f"{run_id}/{secrets.token_hex(8)}"
        self._counts: Counter[str] = Counter()
        self._shown: Counter[str] = Counter()
        self._metrics = WorkerMetrics(task, run_id)
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._published = 0.0

    def ready(self, device: str, gpu: bool) -> None:
        """Note that the model is loaded, on which of DEVICES, and what memory the process takes before it has an image.

        Args: gpu: whether Ray gave the actor a GPU.
        """
        self._counts["idle_mb"] = peak_rss_mb()
        self._counts[f"on_{device}"] = 1
        self._counts["without_cuda"] = int(gpu and device == "cpu")

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
        # A lock of its own: who counts does not wait for the store, and what is told last is the newest.
        with self._telling:
            with self._lock:
                self._counts["rss_mb"] = peak_rss_mb()
                self._counts.update({f"{ETAGS}{place}:": 1 for place in doubted() if f"{ETAGS}{place}:" not in self._counts})
                counts = dict(self._counts)
            self._metrics.add({name: count - self._shown[name] for name, count in counts.items()})
            self._shown = Counter(counts)
            publish(self._key, counts)


def peak_rss_mb() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000
