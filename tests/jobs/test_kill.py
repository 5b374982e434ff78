"""After a killed worker or an interrupted run, the same command loses no image and repeats none."""

import os
import signal
from pathlib import Path

import numpy as np

from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.run_processes import actors_of, images_written, make_photos, start, wait_for

IMAGES = 300


def test_killed_worker_and_interrupt_lose_no_image(tmp_path: Path, crops: list[np.ndarray]) -> None:
    source, output = Store(str(tmp_path / "many")), Store(str(tmp_path / "out"))
    make_photos(source, IMAGES, crops)
    run = start(source, output)
    wait_for(run, lambda: images_written(output) > 40)
    workers = actors_of(run)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    wait_for(run, lambda: images_written(output) > 120)
    run.send_signal(signal.SIGINT)
    code, err = run.wait(), run.stderr.read()
    assert code == 130, err
    assert b"interrupted" in err
    assert err.index(b"starting Ray on this machine") < err.index(b"300 images; ")
    [record] = read_run_records(output, list_run_ids(output))
    # Images that were processed but not committed do not count.
    assert (record["ok"], record["rejected"]) == (verify(output).rows, 0)
    run = start(source, output)
    assert run.wait() == 0, run.stderr.read()
    verification = verify(output)
    assert verification.problems == []
    assert (verification.images, verification.rows, verification.files) == (IMAGES, IMAGES, IMAGES)


def test_run_that_waits_for_a_lease_can_be_interrupted(tmp_path: Path, crops: list[np.ndarray]) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 1, crops)
    output.write("runs/lease/00000001.json", b'{"machine": "far/1", "pid": 7, "started": "1", "at": 4e9}')
    run = start(source, output)
    assert run.stderr
    assert b"process 7 on far did not release this output. Waiting up to 60 s" in run.stderr.readline()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=50)
    assert run.returncode == 130
    assert b"Traceback" not in err
    assert [e.path for e in output.entries()] == ["runs/lease/00000001.json"]
