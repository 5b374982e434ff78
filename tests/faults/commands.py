"""Runs as processes of their own: started, watched, and the processes that Ray made for them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.pixels import encode_rgb
from pipeline.storage import Store


def make_photos(source: Store, count: int, crops: list[np.ndarray]) -> None:
    """Photos of 64 px, all different, in ten folders."""
    for number in range(count):
        crop = crops[number % len(crops)]
        y, x = number // len(crops) % 32, number // len(crops) // 32
        source.write(f"{number % 10}/{number}.png", encode_rgb(crop[y : y + 64, x : x + 64], "PNG"))


def start(source: Store, output: Store, rows_per_part: int = 20) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs", "denoise", source.url, output.url, "--set", f"rows_per_part={rows_per_part}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def images_written(output: Store) -> int:
    return sum(1 for _ in output.entries("images"))


def wait_for(run: subprocess.Popen[bytes], condition) -> None:
    for _ in range(1200):
        if run.poll() is not None or condition():
            return
        time.sleep(0.05)


def actors_of(run: subprocess.Popen[bytes]) -> list[int]:
    """Processes of the run's actors: Ray names them, and their session is found by the driver's descendants."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            title = (status.parent / "cmdline").read_bytes()
            if title.startswith(b"ray::MapWorker") and run.pid in ancestors(int(status.parent.name)):
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
