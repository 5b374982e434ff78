"""Prometheus metrics of a run, served on Ray's metrics ports, which prefix these names with `ray_`."""

from collections.abc import Callable, Mapping

TAGS = ("task", "run")
COUNTERS = {
    "imagemill_images": (
        "processed images by outcome (ok, rejected), stage and error class",
        ("outcome", "stage", "reason"),
    ),
    "imagemill_bytes": ("bytes of encoded images that were read (in) and of files that were written (out)", ("direction",)),
}
STAGE_SECONDS = "imagemill_stage_seconds"
WAITING = "imagemill_images_waiting"
SERVED = {f"ray_{name}_total": {*TAGS, *keys} for name, (_, keys) in COUNTERS.items()}
SERVED |= {f"ray_{STAGE_SECONDS}_{suffix}": {*TAGS, "stage"} for suffix in ("bucket", "sum", "count")}
SERVED |= {f"ray_{WAITING}": {*TAGS}}
"""Served metric → its tags."""
BOUNDARIES_S = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]


class WorkerMetrics:
    """Metrics of one worker: counters grow about once a second, each stage of each image is observed."""

    def __init__(self, task: str, run_id: str) -> None:
        from ray.util.metrics import Counter, Histogram

        tags = {"task": task, "run": run_id}
        self._counters = {
            name: Counter(name, text, tag_keys=(*TAGS, *keys)).set_default_tags(tags)
            for name, (text, keys) in COUNTERS.items()
        }
        text = "seconds of one image in a stage; of a batch in the stage model, of a part in commit"
        self._stages = Histogram(STAGE_SECONDS, text, BOUNDARIES_S, (*TAGS, "stage")).set_default_tags(tags)

    def observe(self, stage: str, seconds: float) -> None:
        """Record the duration of a stage."""
        self._stages.observe(seconds, {"stage": stage})

    def add(self, counts: Mapping[str, float]) -> None:
        """Add what was counted since the last call, by the names of Tally."""
        for name, count in counts.items():
            if count <= 0:
                continue
            kind, _, rest = name.partition(":")
            if name == "ok":
                self._counters["imagemill_images"].inc(count, {"outcome": "ok", "stage": "", "reason": ""})
            elif kind == "rejected" and rest:
                stage, _, reason = rest.partition(":")
                self._counters["imagemill_images"].inc(count, {"outcome": "rejected", "stage": stage, "reason": reason})
            elif name in ("bytes_in", "bytes_out"):
                self._counters["imagemill_bytes"].inc(count, {"direction": name.removeprefix("bytes_")})


def waiting_gauge(task: str, run_id: str) -> Callable[[int], None]:
    """Return a function that sets the gauge of images that a run has yet to process; the driver calls it."""
    from ray.util.metrics import Gauge

    gauge = Gauge(WAITING, "images of a run that are not processed yet", TAGS)
    set_gauge: Callable[[int], None] = gauge.set_default_tags({"task": task, "run": run_id}).set
    return set_gauge
