"""After a killed worker, driver or run, the same command loses no image and repeats none, and no process goes on."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.engines import ENGINES, RAY_IN_CHAOS
from tests.support.process_states import descendants, is_running, wait_until
from tests.support.run_processes import images_written, make_photos, start, wait_for, workers_of

IMAGES = 150


@pytest.fixture
def places(tmp_path: Path, crops: list[np.ndarray]) -> tuple[Store, Store]:
    """Return an input and an output."""
    source = Store(str(tmp_path / "in"))
    make_photos(source, IMAGES, crops)
    return source, Store(str(tmp_path / "out"))


def check_next_run(source: Store, output: Store) -> None:
    """Complete an output on the local engine of this process, which is faster: no row says which engine wrote it."""
    run(RunConfig(task="denoise", input=source.url, output=output.url, rows_per_part=20))
    verification = verify(output)
    assert verification.problems == []
    assert (verification.images, verification.rows, verification.files) == (IMAGES, IMAGES, IMAGES)


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_worker_and_interrupt_lose_no_image(places: tuple[Store, Store], engine: str) -> None:
    source, output = places
    process = start(source, output, engine=engine)
    wait_for(process, lambda: images_written(output) > 20)
    workers = workers_of(process, engine)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    wait_for(process, lambda: images_written(output) > 60)
    processes = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1].decode()
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert err.count("engine: ") == 1
    assert err.index(f"engine: {engine}") < err.index(f"{IMAGES} images; ")
    assert wait_until(lambda: not any(map(is_running, processes)))
    [record] = read_run_records(output, list_run_ids(output))
    # Images that were processed but not committed do not count.
    assert (record["ok"], record["rejected"]) == (verify(output).rows, 0)
    check_next_run(source, output)


@pytest.mark.parametrize("engine", RAY_IN_CHAOS)
def test_killed_driver_leaves_no_process(places: tuple[Store, Store], engine: str) -> None:
    """A worker that went on could overwrite what the next run writes."""
    source, output = places
    process = start(source, output, engine=engine)
    wait_for(process, lambda: images_written(output) > 20)
    processes = descendants(process.pid)
    assert set(workers_of(process, engine)) <= set(processes)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(map(is_running, processes)))
    check_next_run(source, output)


def test_run_that_waits_for_a_lease_can_be_interrupted(tmp_path: Path, crops: list[np.ndarray]) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 1, crops)
    output.write("runs/lease/00000001.json", b'{"machine": "far/1", "pid": 7, "started": "1", "at": 4e9}')
    process = start(source, output)
    assert process.stderr
    lines = iter(process.stderr.readline, b"")
    assert any(b"process 7 on far did not release this output. Waiting up to 60 s" in line for line in lines)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert [e.path for e in output.entries()] == ["runs/lease/00000001.json"]
