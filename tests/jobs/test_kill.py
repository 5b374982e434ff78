"""SIGKILL at random moments, then the same command: no image lost, none twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.account import verify
from pipeline.storage import Store

IMAGES = 300


@pytest.fixture
def many(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(IMAGES):
        y, x = number % 32, number // 32
        Image.fromarray(crops[number % len(crops)][y : y + 64, x : x + 64]).save(folder / f"{number}.png")
    return folder


def start(source: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs", "denoise", str(source), str(output), "--set", "rows_per_part=20"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def images_written(output: Path) -> int:
    return sum(1 for p in (output / "images").rglob("*.png")) if (output / "images").exists() else 0


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


def assert_all_there(output: Path) -> None:
    seen = verify(Store(str(output)))
    assert seen.problems == []
    assert (seen.images, seen.rows, seen.files) == (IMAGES, IMAGES, IMAGES)


def test_killed_drivers_lose_nothing(many, tmp_path):
    output = tmp_path / "out"
    generator = random.Random(0)
    for _ in range(3):
        run = start(many, output)
        target = images_written(output) + generator.randrange(90)
        wait_for(run, lambda goal=target: images_written(output) > goal)
        run.send_signal(signal.SIGKILL)
        run.wait()
    run = start(many, output)
    assert run.wait() == 0, run.stderr.read()
    assert_all_there(output)


def test_a_killed_actor_and_an_interrupt_lose_nothing(many, tmp_path):
    output = tmp_path / "out"
    run = start(many, output)
    wait_for(run, lambda: images_written(output) > 40)
    victims = actors_of(run)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    wait_for(run, lambda: images_written(output) > 120)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.stderr.read()
    assert b"interrupted" in run.stderr.read()
    run = start(many, output)
    assert run.wait() == 0, run.stderr.read()
    assert_all_there(output)
