"""Runs as separate processes: start them, watch them, and find the processes that an engine started for them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imagemill.pipeline.config import PoolConfig, RunConfig
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.run import run as run_here
from imagemill.pipeline.storage import Store
from tests.support.process_states import command_line, descendants, parent, wait_until


def make_photos(source: Store, count: int, crops: list[np.ndarray], first: int = 0) -> None:
    """Write photos of 64 px, all different, into ten folders."""
    for number in range(first, first + count):
        crop = crops[number % len(crops)]
        y, x = number // len(crops) % 32, number // len(crops) // 32
        source.write(f"{number % 10}/{number}.png", encode_rgb(crop[y : y + 64, x : x + 64], "PNG"))


def start(
    source: Store, output: Store, *settings: str, engine: str = "local", task: str = "denoise", **environment: str
) -> subprocess.Popen[bytes]:
    """Start a run with small parts in a separate process group.

    Args:
        settings: changes of the config, such as `pool.batch_size=1`.
        environment: variables for the process.
    """
    command = [sys.executable, "-m", "imagemill", task, source.url, output.url, "--engine", engine]
    for setting in ("rows_per_part=20", *settings):
        command += ["--set", setting]
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | environment
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=variables, process_group=0, **options)


def images_written(output: Store) -> int:
    return sum(1 for _ in output.entries("images"))


def outputs(output: Store) -> dict[str, str]:
    """Return rel_path → sha256 of the output file, from the rows."""
    rows = read_parts(output, list_parts(output, "results"), ["rel_path", "output_sha256"])
    return dict(zip(rows["rel_path"].to_pylist(), rows["output_sha256"].to_pylist(), strict=True))


def made_without_faults(photos: int, folder: Path, crops: list[np.ndarray], batch_size: int | None = None) -> dict[str, str]:
    """Return the outputs of an undisturbed run over the same photos on a local disk."""
    source, output = Store(str(folder / "calm_in")), Store(str(folder / "calm_out"))
    make_photos(source, photos, crops)
    pool = PoolConfig(batch_size=batch_size)
    run_here(RunConfig(task="denoise", input=source.url, output=output.url, pool=pool, engine="local"))
    return outputs(output)


def stop(run: subprocess.Popen[bytes] | None) -> None:
    """End a run that a failed test left behind."""
    if run is not None and run.poll() is None:
        run.kill()
        run.wait()


def wait_for(run: subprocess.Popen[bytes], condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until a condition holds or the run ends."""
    wait_until(lambda: run.poll() is not None or condition(), seconds)


def fork_servers_of(run: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid in descendants(run.pid) if b"fork_loop import serve" in command_line(pid) and parent(pid) == run.pid]


def workers_of(run: subprocess.Popen[bytes], engine: str) -> list[int]:
    """Return the processes of the run's workers. Those of Ray have the title that Ray gives them."""
    if engine == "local":
        return [worker for server in fork_servers_of(run) for worker in descendants(server)]
    return [pid for pid in descendants(run.pid) if command_line(pid).startswith(b"ray::MapWorker")]


def raylets_of(run: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid in descendants(run.pid) if command_line(pid).split(b"\0")[0].endswith(b"/raylet")]
