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

from pipeline.account import verify
from pipeline.pixels import encode_rgb
from pipeline.storage import Store

IMAGES = 300


def make_photos(source: Store, count: int, crops: list[np.ndarray]) -> None:
    """Photos of 64 px, all different, in ten folders."""
    for number in range(count):
        crop = crops[number % len(crops)]
        y, x = number // len(crops) % 32, number // len(crops) // 32
        source.write(f"{number % 10}/{number}.png", encode_rgb(crop[y : y + 64, x : x + 64], "PNG"))


@pytest.fixture
def many(tmp_path: Path, crops: list[np.ndarray]) -> Store:
    source = Store(str(tmp_path / "many"))
    make_photos(source, IMAGES, crops)
    return source


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


def assert_all_there(output: Store, count: int = IMAGES) -> None:
    seen = verify(output)
    assert seen.problems == []
    assert (seen.images, seen.rows, seen.files) == (count, count, count)


def kill_and_finish(source: Store, output: Store, count: int, rows_per_part: int) -> None:
    """Three SIGKILLs of the driver at random numbers of images, then a run to the end."""
    generator = random.Random(0)
    for _ in range(3):
        run = start(source, output, rows_per_part)
        target = images_written(output) + generator.randrange(count * 3 // 10)
        wait_for(run, lambda goal=target: images_written(output) > goal)
        run.send_signal(signal.SIGKILL)
        run.wait()
    run = start(source, output, rows_per_part)
    assert run.wait() == 0, run.stderr.read()
    assert_all_there(output, count)


def test_killed_drivers_lose_nothing(many, tmp_path):
    kill_and_finish(many, Store(str(tmp_path / "out")), IMAGES, rows_per_part=20)


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["local", "s3"])
def test_two_thousand_photos_survive_three_kills(place, request, tmp_path, crops):
    base = str(tmp_path) if place == "local" else request.getfixturevalue("rclone_bucket")
    source, output = Store(f"{base}/in"), Store(f"{base}/out")
    make_photos(source, 2000, crops)
    kill_and_finish(source, output, 2000, rows_per_part=100)


def test_a_killed_actor_and_an_interrupt_lose_nothing(many, tmp_path):
    output = Store(str(tmp_path / "out"))
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
