"""Runs as separate processes: start them, watch them, and find the processes that Ray started for them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imagemill.pipeline.config import PoolConfig, RunConfig
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.run import run as run_here
from imagemill.pipeline.storage import Store


def make_photos(source: Store, count: int, crops: list[np.ndarray], first: int = 0) -> None:
    """Write photos of 64 px, all different, into ten folders."""
    for number in range(first, first + count):
        crop = crops[number % len(crops)]
        y, x = number // len(crops) % 32, number // len(crops) // 32
        source.write(f"{number % 10}/{number}.png", encode_rgb(crop[y : y + 64, x : x + 64], "PNG"))


def start(source: Store, output: Store, rows_per_part: int = 20, batch_size: int | None = None) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "imagemill",
        "denoise",
        source.url,
        output.url,
        "--set",
        f"rows_per_part={rows_per_part}",
    ]
    command += ["--set", f"pool.batch_size={batch_size}"] if batch_size else []
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


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
    run_here(RunConfig(task="denoise", input=source.url, output=output.url, pool=pool))
    return outputs(output)


def stop(run: subprocess.Popen[bytes] | None) -> None:
    """End a run that a failed test left behind."""
    if run is not None and run.poll() is None:
        run.kill()
        run.wait()


def wait_for(run: subprocess.Popen[bytes], condition) -> None:
    for _ in range(1200):
        if run.poll() is not None or condition():
            return
        time.sleep(0.05)


def actors_of(run: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of the run's workers, by the title that Ray gives them."""
    return descendants(run, lambda title: title.startswith(b"ray::MapWorker"))


def raylets_of(run: subprocess.Popen[bytes]) -> list[int]:
    return descendants(run, lambda title: title.split(b"\0")[0].endswith(b"/raylet"))


def descendants(run: subprocess.Popen[bytes], wanted: Callable[[bytes], bool]) -> list[int]:
    """Return the child processes of a run whose command line satisfies a condition."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            title = (status.parent / "cmdline").read_bytes()
            if wanted(title) and run.pid in ancestors(int(status.parent.name)):
                found.append(int(status.parent.name))
        except OSError:
            continue
    return found


def ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        chain.append(pid)
    return chain
