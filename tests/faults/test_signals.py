"""A signal at any moment of a run ends it in an orderly way: one line, the right exit code, and no process that goes on."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest

from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.process_states import descendants, is_running, wait_until
from tests.support.run_processes import images_written, make_photos, start, wait_for, workers_of

IMAGES = 80
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def rows(output: Store) -> int:
    return len(read_parts(output, list_parts(output, "results"), ["rel_path"]))


MOMENTS: dict[str, Callable[[Popen[bytes], Store, str], object]] = {
    "imports": lambda run, output, engine: time.sleep(0.3) or True,
    "start of the engine": lambda run, output, engine: descendants(run.pid),
    "the lease is held": lambda run, output, engine: output.exists("runs/lease/00000001.json"),
    "a worker loads its model": lambda run, output, engine: workers_of(run, engine),
    "a block": lambda run, output, engine: images_written(output) > 5,
    "between blocks": lambda run, output, engine: rows(output) > 0,
    "report": lambda run, output, engine: rows(output) == IMAGES,
}
"""Moment of a run → whether it has come."""
ALL = [
    pytest.param(engine, number, moment, is_group, marks=pytest.mark.chaos)
    for engine, numbers in (("local", SIGNALS), ("ray", SIGNALS[1:2]))
    for moment, number, is_group in [
        *((moment, number, False) for moment in MOMENTS for number in numbers),
        *(("a block", number, True) for number in SIGNALS),
    ]
]
QUICK = [
    ("local", signal.SIGTERM, "a worker loads its model", False),
    ("local", signal.SIGHUP, "between blocks", True),
    ("local", signal.SIGINT, "start of the engine", False),
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("engine", "number", "moment", "is_group"), [*QUICK, *ALL])
def test_signal_at_any_moment_ends_the_run(
    engine, number, moment, is_group, tmp_path: Path, crops: list[np.ndarray]
) -> None:
    """A terminal, `timeout` and a service manager signal the whole process group."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, IMAGES, crops)
    run = start(source, output, engine=engine)
    wait_for(run, lambda: MOMENTS[moment](run, output, engine))
    processes = descendants(run.pid)
    os.killpg(run.pid, number) if is_group else run.send_signal(number)
    err = run.communicate(timeout=200)[1].decode()
    assert "Traceback" not in err
    # After the last row, a signal only ends the report.
    codes = (0, 130) if rows(output) == IMAGES else (130,)
    if moment == "imports" and -number == run.returncode:
        pytest.skip("Python itself had not started yet")
    assert run.returncode in codes, err
    assert run.returncode == 0 or "interrupted" in err.splitlines()[-1]
    assert wait_until(lambda: not any(map(is_running, processes)))
    for record in (tmp_path / "out/runs").glob("*/run.json"):
        assert json.loads(record.read_bytes())["exit_code"] == run.returncode
    if rows(output):
        assert verify(output).problems == []
