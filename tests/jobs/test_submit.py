"""`imagemill submit` against a real head with a token: what it runs, what it refuses, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline.cluster.metrics import SERVED
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.clusters import RayCluster, metrics_of
from tests.support.servers import free_port

TOKEN = "f" * 64
PATIENCE_SECONDS = 900
"""Of one command: nothing here takes a minute, but a machine may be busy."""


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    made = RayCluster(token=TOKEN)
    try:
        made.start(cpus=2)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Path:
    """Six photos and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for number, crop in enumerate(crops[:6]):
        Image.fromarray(crop).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "imagemill", "submit", "--set", "task=denoise", *arguments]


def completed(arguments: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def submit(cluster: RayCluster, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Variables are those of the cluster and these; an empty one is none."""
    environment = {key: value for key, value in (cluster.variables() | variables).items() if value}
    return completed(command(*arguments), environment)


def test_a_run_on_a_cluster_ends_with_its_own_exit_code(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    places = ["--dashboard", head.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
    done = submit(head, *places, "--set", "max_reject_fraction=0.01", "--set", "pool.workers=1", IMAGEMILL_LOG="json")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "1 of 7 images were rejected" in done.stdout
    record = json.loads(next((tmp_path / "out/runs").glob("*/run.json")).read_text())
    assert (record["exit_code"], record["ok"], record["rejected"]) == (3, 6, 1)
    assert verify(Store(str(tmp_path / "out"))).problems == []
    # One name for the run and the job, so that what one is called finds the other.
    run_id = record["run_id"]
    again = submit(head, "--dashboard", head.dashboard, "--resume", run_id)
    assert (again.returncode, run_id in again.stdout) == (3, True), again.stderr

    # What the job got: the packages, and no credentials.
    shipped = next(head.folder.glob("ray/session_latest/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert {path.name for path in shipped.iterdir()} - {".rayignore"} == {"imagemill"}
    assert {"models", "pipeline", "jobs"} <= {path.name for path in (shipped / "imagemill").iterdir()}
    assert TOKEN not in done.stdout + done.stderr

    # The log: what was said of the run names it; of the image that failed, the image too.
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["run_id"] for line in lines if line["logger"] == "imagemill.run"} == {run_id}
    assert any("1 worker of 1 CPU each; cluster: 2 CPUs and 0 GPUs on 1 node" in line["message"] for line in lines)
    assert lines[-1]["exit_code"] == 3
    logs = "".join(path.read_text() for path in head.folder.glob("ray/session_latest/logs/worker-*.err"))
    rejects = [json.loads(line) for line in logs.splitlines() if '"image_id"' in line]
    assert [(r["run_id"], r["stage"], r["error_class"]) for r in rejects] == [(run_id, "decode", "UnknownFormat")]


@pytest.mark.chaos
def test_a_driver_of_its_own_on_the_cluster(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "imagemill", "denoise", str(photos), str(tmp_path / "out"), "--address", head.address]
    done = completed(run, head.variables())
    assert done.returncode == 0, done.stderr
    assert verify(Store(str(tmp_path / "out"))).problems == []


def test_a_wrong_token_is_refused_in_one_line(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    places = ["--dashboard", head.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
    wrong = submit(head, *places, RAY_AUTH_TOKEN="0" * 64)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
    assert "refuses the token in RAY_AUTH_TOKEN" in wrong.stderr
    # Without one: the token that Ray on this machine would take is made, and it is not the cluster's.
    (tmp_path / "home").mkdir()
    without = submit(head, *places, HOME=str(tmp_path / "home"), RAY_AUTH_TOKEN="")
    assert (without.returncode, without.stderr.count("\n")) == (2, 1), without.stderr
    assert "refuses the token" in without.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.chaos
def test_a_cluster_that_asks_for_no_token_gets_the_job_and_a_warning(photos: Path, tmp_path: Path) -> None:
    cluster = RayCluster()
    try:
        cluster.start(cpus=2)
        places = ["--address", cluster.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
        done = submit(cluster, *places, RAY_AUTH_MODE="")
    finally:
        cluster.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "asks for no token" in done.stderr.splitlines()[0]
    assert verify(Store(str(tmp_path / "out"))).problems == []


@pytest.mark.chaos
def test_a_job_is_measured_left_alone_and_stopped(head: RayCluster, tmp_path: Path, crops: list[np.ndarray]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(300):
        Image.fromarray(np.tile(crops[number % len(crops)], (10, 8, 1))).save(source / f"{number}.jpeg")
    (source / "0.jpg").write_bytes(b"broken")
    places = ["--dashboard", head.dashboard, "--input", str(source), "--output", str(out), "--set", "rows_per_part=10"]
    following = subprocess.Popen(command(*places), env=head.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run_id = re.search(r"submitted (\S+)", following.stderr.readline().decode()).group(1)
    lines: list[str] = []
    for _ in range(6000):
        served = metrics_of(head).splitlines()
        lines = [line for line in served if line.startswith("ray_imagemill") and f'run="{run_id}"' in line]
        if any('reason="UnknownFormat"' in line for line in lines) or following.poll() is not None:
            break
        time.sleep(0.1)
    assert {re.sub(r"[{ ].*", "", line) for line in lines} >= SERVED.keys() - {"ray_imagemill_images_waiting"}
    assert all('task="denoise"' in line for line in lines)

    # Ctrl-C ends the following, not the job.
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=PATIENCE_SECONDS)[1].decode()
    assert following.returncode == 130, said
    assert "the job goes on" in said
    assert f"--resume {run_id}`" in said
    assert not (out / f"runs/{run_id}/run.json").exists()
    # Ray's own CLI is enough to stop it.
    stop = [str(Path(sys.executable).parent / "ray"), "job", "stop", "--dashboard", head.dashboard, run_id]
    assert completed(stop, head.variables()).returncode == 0
    assert submit(head, "--dashboard", head.dashboard, "--resume", run_id).returncode == 130
    assert json.loads((out / f"runs/{run_id}/run.json").read_text())["exit_reason"] == "interrupted"
    assert list((out / "runs/lease").glob("*.released"))


def refused(*arguments: str, **variables: str) -> str:
    """What a submit without a cluster says; it must be one line, exit 2."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | variables
    done = completed(command(*arguments), environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    return done.stderr


def test_what_is_refused_before_anything_is_sent() -> None:
    places = ["--input", "s3://bucket/in", "--output", "s3://bucket/out"]
    nobody = f"http://127.0.0.1:{free_port()}"
    assert "can be reached: no answer" in refused("--dashboard", nobody, *places)
    assert "--insecure" in refused("--address", "http://ray.example.com:8265", *places)
    assert "http(s)://HOST:8265" in refused("--address", "ray.example.com:6379", *places)
    assert "every node mounts" in refused("--dashboard", nobody, "--input", "s3://bucket/in")
    assert "full path of a shared disk" in refused("--dashboard", nobody, "--input", "photos", "--output", "s3://bucket/out")


class OtherRay(BaseHTTPRequestHandler):
    """Answers as the dashboard of a cluster of another Ray that asks for no token."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2.59.1", "ray_commit": ""}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_cluster_of_another_ray_and_without_authentication() -> None:
    server = HTTPServer(("127.0.0.1", 0), OtherRay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    arguments = ["--address", address, "--input", "s3://bucket/in", "--output", "s3://bucket/out"]
    try:
        done = completed(command(*arguments), dict(os.environ))
    finally:
        server.shutdown()
    warning, error = done.stderr.splitlines()
    assert "asks for no token" in warning
    assert "runs Ray 2.59.1" in error
    assert done.returncode == 2


def test_submitting_needs_no_torch() -> None:
    code = (
        "import sys, imagemill.jobs.submit, imagemill.jobs.nightly, imagemill.jobs.process; sys.exit('torch' in sys.modules)"
    )
    assert completed([sys.executable, "-c", code], dict(os.environ)).returncode == 0
