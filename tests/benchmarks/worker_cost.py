"""Compare the CPU time of one worker without an engine with that of the hand-written loop, on photos of 256 px.

Run: python tests/benchmarks/worker_cost.py [--level 3] [--quality 0] [--photos FOLDER]

Both run in this process on one core, in turn, on the same images and weights. Other programs slow both down, so the ratio of
the medians is the figure to compare.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import photos as made
import typer
from rounds import PEERS, ROOT, TUNED

WARM_IMAGES = 48


def cpu_seconds(fn: Callable[[], object]) -> float:
    began = time.process_time()
    fn()
    return time.process_time() - began


def main(
    images: Annotated[int, typer.Option(min=WARM_IMAGES)] = 250,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    level: Annotated[int, typer.Option(help="zstd level of Imagemill; the hand-written loop uses 3")] = 3,
    quality: Annotated[float, typer.Option(min=0, max=1, help="share of images whose quality is measured")] = 0.0,
    photos: Annotated[str | None, typer.Option(help="photographs to crop; scikit-image's by default")] = None,
) -> None:
    """Print the CPU seconds per 1,000 images of both, and their ratio."""
    if any(os.environ.get(name) != value for name, value in TUNED.items()):
        # The C library reads these variables at its start.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | TUNED)
    sys.path += [str(ROOT), str(PEERS)]
    import handwritten
    import work

    from imagemill.pipeline.config import RunConfig
    from imagemill.pipeline.engines.local_channel import LocalChannel
    from imagemill.pipeline.output.lease import Lease
    from imagemill.pipeline.resolve import build_plan, resolve
    from imagemill.pipeline.worker import BLOCKS_AT_ONCE, Worker
    from tests.support.worker_jobs import job_here

    with tempfile.TemporaryDirectory(prefix="imagemill-worker-") as folder:
        source, peer = Path(folder, "in"), Path(folder, "peer")
        peer.mkdir()
        made.make(source, images, photos, False, False, 0, os.cpu_count() or 1)
        resolved = resolve(RunConfig(task="compress", input=str(source), output=str(Path(folder, "out"))))
        handwritten.PROCESSES = 1
        tuned = work.Tuned("latents")
        handwritten.Tuned = lambda workload: tuned
        with Lease(resolved.output) as lease:
            todo = build_plan(resolved).todo
            job = dataclasses.replace(
                job_here(resolved, lease.fencing_token),
                params=resolved.params.model_dump(),
                quality=quality,
                compression_level=level,
                batch_size=work.BATCH,
            )
            worker = Worker(job, LocalChannel())
            half = -(-len(todo) // BLOCKS_AT_ONCE)
            blocks = [todo.slice(start, half) for start in range(0, len(todo), half)]

            def work_on_blocks() -> None:
                with ThreadPoolExecutor(BLOCKS_AT_ONCE) as callers:
                    list(callers.map(worker.process_block, blocks))

            ways = {
                "worker": work_on_blocks,
                "hand-written loop": lambda: handwritten.loop("latents", str(source), peer, 0),
            }
            worker.process_block(todo.slice(0, WARM_IMAGES))
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    seconds[name].append(cpu_seconds(way) * 1000 / images)
    for name, values in seconds.items():
        middle, spread = statistics.median(values), f"{min(values):.2f} to {max(values):.2f}"
        typer.echo(f"{name:18} {middle:6.2f} CPU s per 1,000 images ({spread})")
    ratio = statistics.median(seconds["worker"]) / statistics.median(seconds["hand-written loop"])
    typer.echo(f"worker ÷ loop      {ratio:6.2f}")


if __name__ == "__main__":
    typer.run(main)
