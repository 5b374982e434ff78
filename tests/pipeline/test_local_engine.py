"""The local engine: after any fault of a worker, no image is lost, and no process goes on after the run."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines import local_engine
from imagemill.pipeline.engines.fork_server import fork, start_server
from imagemill.pipeline.engines.local_engine import MOST_FAILED_STARTS, LocalWorker
from imagemill.pipeline.errors import Deadline, Interrupted, OutputHeld, RunFailed
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support import worker_functions
from tests.support.forked_functions import sleep
from tests.support.process_states import descendants, is_running, wait_until
from tests.support.run_processes import make_photos

IMAGES = 12


@pytest.fixture
def config(tmp_path: Path, crops: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return a run of two workers with four blocks. Workers find the folder for their faults."""
    # Modules of the current folder are not found in workers, and these tests need `tests`.
    monkeypatch.chdir(tmp_path)
    faults = tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv("FAULTS", str(faults))
    source = Store(str(tmp_path / "in"))
    make_photos(source, IMAGES, crops)
    pool = {"workers": 2, "batch_size": 1}
    return RunConfig(
        task="denoise", input=source.url, output=str(tmp_path / "out"), engine="local", rows_per_part=3, pool=pool
    )


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert wait_until(lambda: not descendants(start_server()._process.pid), 10)


def inject(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Let workers run a function of worker_functions.py."""
    monkeypatch.setattr(local_engine, "run_worker", getattr(worker_functions, fault))


def check_complete(config: RunConfig) -> None:
    verification = verify(Store(config.output))
    assert verification.problems == []
    assert (verification.images, verification.rows, verification.files) == (IMAGES,) * 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("end_before_commit", "a worker process ended with exit code 3; another one replaces it"),
        ("die_before_commit", "a worker process was killed by SIGKILL, as when memory runs out; another one replaces it"),
        ("crash_before_commit", "a worker process was killed by SIGSEGV; another one replaces it"),
        ("run_out_of_memory_between_blocks", "a worker process ended with exit code 1; another one replaces it"),
        ("kill_server_before_commit", "a worker process ended; another one replaces it"),
        ("cannot_report", "a worker process ended with exit code 1; another one replaces it"),
    ],
)
def test_dead_worker_is_replaced(fault: str, message: str, config: RunConfig, monkeypatch, caplog) -> None:
    inject(monkeypatch, fault)
    assert run(config)["ok"] == IMAGES
    assert message in caplog.messages
    check_complete(config)


@pytest.mark.timeout(60)
def test_idle_worker_gets_the_blocks_of_a_dead_one(config: RunConfig, monkeypatch) -> None:
    """A worker stops. The other worker does the rest and is idle when the stopped one is killed."""
    inject(monkeypatch, "stop_before_commit")

    def kill_when_alone() -> None:
        marker = Path(os.environ["FAULTS"]) / "fault"
        assert wait_until(lambda: marker.exists() and len(list(Path(config.output, "results").glob("*.parquet"))) == 1)
        # Let the driver hear that the block of the other worker is done.
        time.sleep(0.5)
        os.kill(int(marker.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_alone)
    killer.start()
    # Two blocks, so that one is unfinished, for which the idle worker is enough.
    pool = config.pool.model_copy(update={"batch_size": IMAGES // 2})
    assert run(config.model_copy(update={"rows_per_part": IMAGES // 2, "pool": pool}))["ok"] == IMAGES
    killer.join()
    check_complete(config)


def test_worker_that_reads_nothing_does_not_block_the_driver(monkeypatch, tmp_path: Path) -> None:
    """A block may be larger than the buffer of a socket."""
    monkeypatch.chdir(tmp_path)
    worker = LocalWorker(fork(sleep))
    began = time.monotonic()
    worker.send("block", 0, bytes(50_000_000))
    worker.end()
    assert time.monotonic() - began < 10
    assert not is_running(worker.process.pid)


def test_workers_that_never_start_end_the_run(config: RunConfig, monkeypatch) -> None:
    inject(monkeypatch, "fail_to_start")
    with pytest.raises(RunFailed, match="a worker process ended with exit code 4 before it was ready") as error_info:
        run(config)
    assert "Run the same command again" in str(error_info.value)
    monkeypatch.undo()


def test_run_continues_with_the_workers_that_start(config: RunConfig, monkeypatch, caplog) -> None:
    """A machine may have memory for one worker only."""
    inject(monkeypatch, "only_first_starts")
    assert run(config)["ok"] == IMAGES
    assert caplog.text.count("ended with exit code 4") <= 2 * MOST_FAILED_STARTS
    check_complete(config)


def test_server_that_is_killed_again_and_again_is_replaced(config: RunConfig, monkeypatch, caplog) -> None:
    """All workers of a machine die with their server, which does not mean that workers cannot start."""
    inject(monkeypatch, "kill_server_at_start")
    monkeypatch.setattr(local_engine, "MOST_FAILED_STARTS", 2)
    config = config.model_copy(update={"pool": config.pool.model_copy(update={"workers": 1})})
    assert run(config)["ok"] == IMAGES
    assert caplog.text.count("a worker process ended; another one replaces it") == 2
    check_complete(config)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("run_out_of_memory_in_block", RunFailed, "a worker failed: MemoryError. Committed rows stay"),
        ("raise_unpicklable_error", RunFailed, "a worker failed: StrangeError: the library is angry. Committed rows stay"),
        ("lose_lease_before_commit", OutputHeld, "another run took over this output"),
    ],
)
def test_error_of_a_worker_ends_the_run(fault, error, message: str, config: RunConfig, monkeypatch) -> None:
    inject(monkeypatch, fault)
    with pytest.raises(error, match=message):
        run(config)


@pytest.mark.parametrize("error", [Interrupted, Deadline, KeyboardInterrupt])
def test_interrupted_run_leaves_no_worker(error: type[BaseException], config: RunConfig, monkeypatch) -> None:
    """Two signals, of which the second arrives while the workers are ended, leave no process, and a record of the run."""
    inject(monkeypatch, "hang_before_commit")
    raised = []

    def interrupt(*_: object) -> None:
        if len(raised) < 2 and list(Path(os.environ["FAULTS"]).glob("hanging-*")):
            raised.append(1)
            raise error

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.02)
    try:
        with pytest.raises(error):
            run(config)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not [pid for pid in descendants(start_server()._process.pid) if is_running(pid)]
    [record] = Path(config.output, "runs").glob("*/run.json")
    # The second signal may arrive before the committed rows are counted.
    assert json.loads(record.read_bytes()).get("ok", 0) == 0
    monkeypatch.undo()
    assert run(config)["ok"] == IMAGES
    check_complete(config)


def test_runs_in_two_threads_at_once(config: RunConfig, tmp_path: Path) -> None:
    configs = [config, config.model_copy(update={"output": str(tmp_path / "other")})]
    records: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda config=config: records.append(run(config))) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record["ok"] for record in records] == [IMAGES] * 2
    for config in configs:
        check_complete(config)


def test_relative_places_follow_the_current_folder(config: RunConfig, tmp_path: Path, monkeypatch) -> None:
    """The fork server may have been started in another folder."""
    start_server()
    monkeypatch.chdir(tmp_path / "in")
    assert run(config.model_copy(update={"input": ".", "output": "../out"}))["ok"] == IMAGES
    check_complete(config)


def test_new_credentials_reach_workers(config: RunConfig, moto_bucket: str, crops, monkeypatch) -> None:
    """A notebook may set the credentials of S3 after its first run."""
    variables = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    for name in variables:
        monkeypatch.delenv(name)
    assert run(config)["ok"] == IMAGES
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(config.model_copy(update={"output": f"{moto_bucket}/out"}))["ok"] == IMAGES


@pytest.mark.parametrize(("form", "expected"), [("json", 1), ("text", 0)])
def test_rejects_are_logged_as_json(form: str, expected: int, config: RunConfig, monkeypatch, caplog) -> None:
    """With IMAGEMILL_LOG=json, records of workers reach the log of the driver, with the run and the image."""
    monkeypatch.setenv("IMAGEMILL_LOG", form)
    Path(config.input, "broken.png").write_bytes(b"broken")
    caplog.set_level(logging.INFO)
    record = run(config)
    rejects = [entry for entry in caplog.records if getattr(entry, "error_class", None) == "UnknownFormat"]
    assert len(rejects) == expected
    for reject in rejects:
        assert (reject.run_id, reject.stage, reject.levelname) == (record["run_id"], "decode", "WARNING")
        assert reject.getMessage().startswith(f"{config.input}/broken.png: not an image")
