"""Measure what counting one image costs a worker, with and without metrics. Run: python tests/benchmarks/metrics_cost.py"""

import statistics
import time

import ray

from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.cluster.metrics import WorkerMetrics
from imagemill.pipeline.cluster.ray_channel import RayChannel
from imagemill.pipeline.tally import Tally

IMAGES, REPEATS = 2000, 7
STAGES = ("fetch", "decode", "model", "encode", "put")


class Counting:
    """An actor that only counts, like the BlockProcessor."""

    def __init__(self) -> None:
        metrics = WorkerMetrics("denoise", "benchmark")
        self.tallies = {
            "with": Tally("benchmark", RayChannel(), metrics),
            "without": Tally("benchmark", RayChannel()),
        }

    def cpu_us(self, which: str) -> float:
        """Return the CPU microseconds per image."""
        tally, began = self.tallies[which], time.process_time()
        for _ in range(IMAGES):
            for stage in STAGES:
                with tally.time(stage):
                    pass
            tally.add(bytes_in=1)
            tally.add(bytes_out=1)
            tally.add(ok=1)
        tally.flush()
        return (time.process_time() - began) / IMAGES * 1e6


def main() -> None:
    with connected(None, num_cpus=2):
        actor = ray.remote(num_cpus=1)(Counting).remote()
        ray.get([actor.cpu_us.remote(which) for which in ("with", "without")])
        costs = [(ray.get(actor.cpu_us.remote("with")), ray.get(actor.cpu_us.remote("without"))) for _ in range(REPEATS)]
    for name, values in zip(("with metrics", "without"), zip(*costs, strict=True), strict=True):
        print(f"{name:13} {statistics.median(values):6.1f} µs of CPU an image ({min(values):.1f} to {max(values):.1f})")
    print(f"ratio         {statistics.median(a / b for a, b in costs):6.2f}")


if __name__ == "__main__":
    main()
