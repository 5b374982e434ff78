"""The engine of a run, and an S3 server behind a proxy that injects faults."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.support.engines import RAY_IN_CHAOS
from tests.support.servers import S3, Server, environment_of, free_port, rclone
from tests.support.short_waits import run_worker_with_short_waits, shorten_waits


@pytest.fixture(params=RAY_IN_CHAOS)
def engine(request: pytest.FixtureRequest) -> str:
    """Run a test on the local engine and, in `make chaos`, on the Ray that all tests share."""
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return str(request.param)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shorten the waits before retries, in this process and in workers of the local engine."""
    shorten_waits(monkeypatch.setattr)
    monkeypatch.setattr("imagemill.pipeline.engines.local_engine.run_worker", run_worker_with_short_waits)
    # Modules of the current folder are not found in workers, and these workers need `tests`.
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Start rclone with one bucket behind a fault-free proxy, and set the environment to use it."""
    backend = rclone(tmp_path / "s3")
    (tmp_path / "s3/data/bucket").mkdir()
    port = free_port()
    script = str(Path(__file__).parents[1] / "support/front.py")
    front = Server([sys.executable, script, str(port), f"http://127.0.0.1:{backend.port}", json.dumps({})], port)
    s3_server = S3(backend, front, "bucket")
    try:
        backend.start()
        front.start()
        for key, value in environment_of(s3_server.endpoint).items():
            monkeypatch.setenv(key, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3_server
    finally:
        front.kill()
        backend.kill()
        s3fs.S3FileSystem.clear_instance_cache()
