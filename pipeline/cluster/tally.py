"""Count what workers do, and publish the counts to the driver through Ray's key-value store."""

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
from imagemill.pipeline.etags import unchecked_buckets

log = logging.getLogger("imagemill.run")
NAMESPACE = b"imagemill"
DEVICES = ("cpu", "cuda")
ETAGS = "etags:"
"""Prefix of a count that names a bucket in which a worker met etags that are not MD5s."""


def publish(key: str, content: dict[str, Any]) -> None:
    """Publish a value under a key, and replace the former value of the key. Failures are logged and ignored.

    The store is internal to Ray. The public alternative, an actor that counts, would cost a process and its start.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    try:
        _internal_kv_put(key.encode(), json.dumps(content).encode(), namespace=NAMESPACE)
    except Exception as e:  # noqa: BLE001 - progress reporting is best effort and must never fail a run
        log.warning("progress was not published: %s", e)


def read_published(prefix: str) -> list[dict[str, Any]]:
    """Return the values published under keys with a prefix."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    keys = _internal_kv_list(prefix.encode(), namespace=NAMESPACE)
    return [json.loads(_internal_kv_get(key, namespace=NAMESPACE) or b"{}") for key in keys]


def delete_published(prefix: str) -> None:
    """Delete the values published under keys with a prefix. Failures are logged and ignored."""
    from ray.experimental.internal_kv import _internal_kv_del

    try:
        _internal_kv_del(prefix.encode(), del_by_prefix=True, namespace=NAMESPACE)
    except Exception as e:  # noqa: BLE001 - best effort, see publish
        log.debug("published values were not deleted: %s", e)


class Tally:
    """Counts and seconds of one worker, published about once a second to the driver and as metrics.

    Args:
        task: name of the task.
        run_id: id of the run.
    """

    def __init__(self, task: str, run_id: str) -> None:
        self._key = f"{run_id}/{secrets.token_hex(8)}"
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._metrics = WorkerMetrics(task, run_id)
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
            self._metrics.add({name: count - self._reported[name] for name, count in counts.items()})
            self._reported = Counter(counts)
            publish(self._key, counts)


def peak_rss_mb() -> int:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000
