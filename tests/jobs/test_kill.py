"""An actor is killed and the run interrupted, then the same command: no image lost, none twice."""

import os
import signal
from pathlib import Path

import numpy as np

from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.run_processes import actors_of, images_written, make_photos, start, wait_for

IMAGES = 300


def test_a_killed_actor_and_an_interrupt_lose_nothing(tmp_path: Path, crops: list[np.ndarray]) -> None:
    many, output = Store(str(tmp_path / "many")), Store(str(tmp_path / "out"))
    make_photos(many, IMAGES, crops)
    run = start(many, output)
    wait_for(run, lambda: images_written(output) > 40)
    victims = actors_of(run)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    wait_for(run, lambda: images_written(output) > 120)
    run.send_signal(signal.SIGINT)
    code, said = run.wait(), run.stderr.read()
    assert code == 130, said
    assert b"interrupted" in said
    assert said.index(b"starting Ray on this machine") < said.index(b"300 images; ")
    [record] = read_run_records(output, list_run_ids(output))
    # What was done and not committed does not count.
    assert (record["ok"], record["rejected"]) == (verify(output).rows, 0)
    run = start(many, output)
    assert run.wait() == 0, run.stderr.read()
    seen = verify(output)
    assert seen.problems == []
    assert (seen.images, seen.rows, seen.files) == (IMAGES, IMAGES, IMAGES)


def test_a_run_that_watches_a_holder_can_be_interrupted(tmp_path: Path, crops: list[np.ndarray]) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 1, crops)
    output.write("runs/lease/00000001.json", b'{"machine": "far/1", "pid": 7, "started": "1", "at": 4e9}')
    run = start(source, output)
    assert run.stderr
    assert b"process 7 on far did not release this output. Waiting up to 60 s" in run.stderr.readline()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=50)
    assert run.returncode == 130
    assert b"Traceback" not in said
    assert [e.path for e in output.entries()] == ["runs/lease/00000001.json"]
