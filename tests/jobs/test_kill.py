"""SIGKILL at random moments, then the same command: no image lost, none twice."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import actors_of, images_written, make_photos, start, wait_for

from pipeline.output.verify import verify
from pipeline.storage import Store

IMAGES = 300


@pytest.fixture
def many(tmp_path: Path, crops: list[np.ndarray]) -> Store:
    source = Store(str(tmp_path / "many"))
    make_photos(source, IMAGES, crops)
    return source


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


@pytest.mark.chaos
def test_killed_drivers_lose_nothing(many, tmp_path):
    kill_and_finish(many, Store(str(tmp_path / "out")), IMAGES, rows_per_part=20)


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
