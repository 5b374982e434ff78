"""Test `imagemill submit` against a real Ray head with a token: runs, refusals and exit codes."""

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
import torch
from PIL import Image

from imagemill.jobs.submit import connect
from imagemill.pipeline.cluster.metrics import SERVED
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.clusters import RayCluster, metrics_of
from tests.support.imported_models import weights_of, write_package
from tests.support.servers import free_port

TOKEN = "f" * 64
PATIENCE_SECONDS = 900
"""Timeout of one command. None takes a minute, unless the machine is busy."""


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    cluster = RayCluster(token=TOKEN)
    try:
        cluster.start(cpus=2)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Path:
    """Return a folder of six photos and one broken file."""
    folder = tmp_path_factory.mktemp("photos")
    for number, crop in enumerate(crops[:6]):
        Image.fromarray(crop).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "imagemill", "submit", "--set", "task=denoise", *arguments]


def run_command(arguments: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def submit(cluster: RayCluster, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Return a function that submits with the cluster's and further variables; it omits empty variables."""
    environment = {key: value for key, value in (cluster.variables() | variables).items() if value}
    return run_command(command(*arguments), environment)


@pytest.mark.ray
@pytest.mark.slow
def test_submit_returns_the_exit_code_of_the_run(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    places = ["--dashboard", head.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
    result = submit(head, *places, "--set", "max_reject_fraction=0.01", "--set", "pool.workers=1", IMAGEMILL_LOG="json")
    assert result.returncode == 3, result.stdout + result.stderr
    assert "1 of 7 images were rejected" in result.stdout
    record = json.loads(next((tmp_path / "out/runs").glob("*/run.json")).read_text())
    assert (record["exit_code"], record["ok"], record["rejected"]) == (3, 6, 1)
    assert verify(Store(str(tmp_path / "out"))).problems == []
    # The run and the job have the same id, so that a user can find either from the other.
    run_id = record["run_id"]
    resumed_result = submit(head, "--dashboard", head.dashboard, "--resume", run_id)
    assert (resumed_result.returncode, run_id in resumed_result.stdout) == (3, True), resumed_result.stderr

    # The job gets the packages and no credentials.
    package_folder = next(head.folder.glob("ray/session_latest/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert {path.name for path in package_folder.iterdir()} - {".rayignore"} == {"imagemill"}
    assert {"models", "pipeline", "jobs"} <= {path.name for path in (package_folder / "imagemill").iterdir()}
    assert TOKEN not in result.stdout + result.stderr

    # Each log line names the run; a log line about a failed image also names the image.
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert {line["run_id"] for line in lines if line["logger"] == "imagemill.run"} == {run_id}
    assert any("1 worker of 1 CPU each; cluster: 2 CPUs and 0 GPUs on 1 node" in line["message"] for line in lines)
    assert lines[-1]["exit_code"] == 3
    logs = "".join(path.read_text() for path in head.folder.glob("ray/session_latest/logs/worker-*.err"))
    rejects = [json.loads(line) for line in logs.splitlines() if '"image_id"' in line]
    assert [(r["run_id"], r["stage"], r["error_class"]) for r in rejects] == [(run_id, "decode", "UnknownFormat")]


@pytest.mark.ray
@pytest.mark.slow
def test_submit_runs_a_night(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    """Locations are checked on the cluster, before the first job. A failed job is the exit code of the submission."""
    (tmp_path / "clean.yaml").write_text("task: denoise\npool: {workers: 1}\n")
    clean = {"name": "clean", "config": "clean.yaml", "input": str(photos), "output": str(tmp_path / "out")}
    missing = {"name": "missing", "task": "denoise", "input": str(tmp_path / "nowhere"), "output": str(tmp_path / "x")}
    night = {"jobs": [clean, missing], "report": str(tmp_path / "nights")}
    (tmp_path / "night.yaml").write_text(json.dumps(night))
    arguments = [
        sys.executable,
        "-m",
        "imagemill",
        "submit",
        "-c",
        str(tmp_path / "night.yaml"),
        "--dashboard",
        head.dashboard,
    ]
    result = run_command([*arguments, "--input", "x"], head.variables())
    assert (result.returncode, "Set input in its jobs" in result.stderr) == (2, True), result.stderr
    result = run_command(arguments, head.variables())
    assert result.returncode == 5, result.stdout + result.stderr
    problem = result.stdout.index(f"missing: input {tmp_path}/nowhere: does not exist")
    assert problem < result.stdout.index("7 images; 1 worker")
    assert "1 of 2 runs failed: 6 of 7 images ok, 1 rejected (UnknownFormat 1)" in result.stdout
    assert (tmp_path / "nights/index.html").exists()
    assert verify(Store(str(tmp_path / "out"))).problems == []


@pytest.mark.chaos
@pytest.mark.ray
def test_run_connects_to_a_cluster_by_its_address(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "imagemill", "denoise", str(photos), str(tmp_path / "out"), "--address", head.address]
    result = run_command(run, head.variables())
    assert result.returncode == 0, result.stderr
    assert verify(Store(str(tmp_path / "out"))).problems == []


@pytest.mark.chaos
@pytest.mark.ray
def test_submit_ships_code_of_users(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    """The cluster has no folder with the code: the driver of the job gets it from Ray, and its workers from the driver."""
    code, weights, model = write_package(tmp_path / "code"), tmp_path / "tiny.pt", tmp_path / "model"
    torch.save(weights_of(code, "TinyDenoiser"), weights)
    architecture = ["--architecture", "my_package.nets:TinyDenoiser", "--code", str(code)]
    command = [sys.executable, "-m", "imagemill", "models", "import", str(weights), str(model), *architecture]
    assert run_command(command, dict(os.environ)).returncode == 0
    arguments = ["--dashboard", head.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
    arguments += ["--checkpoint", str(model), "--set", "pool.workers=1"]
    result = submit(head, *arguments)
    assert (result.returncode, "--code FOLDER" in result.stdout) == (2, True), result.stdout + result.stderr
    result = submit(head, *arguments, "--code", str(code))
    assert result.returncode == 0, result.stdout + result.stderr
    # The name in the config of the job is that of the folder that Ray unpacked.
    config = next((tmp_path / "out/runs").glob("*/config.yaml")).read_text()
    assert re.search("^code: imagemill-code-[0-9a-f]{32}$", config, re.MULTILINE)
    record = json.loads(next((tmp_path / "out/runs").glob("*/run.json")).read_text())
    assert (record["ok"], record["rejected"], len(record["code_sha256"])) == (6, 1, 64)


@pytest.mark.ray
def test_submit_reports_a_refused_token_in_one_line(head: RayCluster, photos: Path, tmp_path: Path) -> None:
    places = ["--dashboard", head.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
    wrong_token_result = submit(head, *places, RAY_AUTH_TOKEN="0" * 64)
    assert (wrong_token_result.returncode, wrong_token_result.stderr.count("\n")) == (2, 1), wrong_token_result.stderr
    assert "refuses the token in RAY_AUTH_TOKEN" in wrong_token_result.stderr
    # Without a token, submit creates a user token, which differs from the cluster's token.
    (tmp_path / "home").mkdir()
    no_token_result = submit(head, *places, HOME=str(tmp_path / "home"), RAY_AUTH_TOKEN="")
    assert (no_token_result.returncode, no_token_result.stderr.count("\n")) == (2, 1), no_token_result.stderr
    assert "refuses the token" in no_token_result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.chaos
@pytest.mark.ray
def test_submit_warns_of_a_cluster_without_token(photos: Path, tmp_path: Path) -> None:
    cluster = RayCluster()
    try:
        cluster.start(cpus=2)
        places = ["--dashboard", cluster.dashboard, "--input", str(photos), "--output", str(tmp_path / "out")]
        result = submit(cluster, *places, RAY_AUTH_MODE="")
    finally:
        cluster.stop()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "requires no token" in result.stderr.splitlines()[0]
    assert verify(Store(str(tmp_path / "out"))).problems == []


@pytest.mark.chaos
@pytest.mark.ray
def test_submitted_job_has_metrics_and_outlives_ctrl_c(head: RayCluster, tmp_path: Path, crops: list[np.ndarray]) -> None:
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
        metric_lines = metrics_of(head).splitlines()
        lines = [line for line in metric_lines if line.startswith("ray_imagemill") and f'run="{run_id}"' in line]
        if any('reason="UnknownFormat"' in line for line in lines) or following.poll() is not None:
            break
        time.sleep(0.1)
    assert {re.sub(r"[{ ].*", "", line) for line in lines} >= SERVED.keys() - {"ray_imagemill_images_waiting"}
    assert all('task="denoise"' in line for line in lines)

    # Ctrl-C stops following, and the job continues.
    following.send_signal(signal.SIGINT)
    err = following.communicate(timeout=PATIENCE_SECONDS)[1].decode()
    assert following.returncode == 130, err
    assert "the job continues" in err
    assert f"--resume {run_id}`" in err
    assert not (out / f"runs/{run_id}/run.json").exists()
    # Ray's command stops the job.
    stop = [str(Path(sys.executable).parent / "ray"), "job", "stop", "--address", head.dashboard, run_id]
    assert run_command(stop, head.variables()).returncode == 0
    assert submit(head, "--dashboard", head.dashboard, "--resume", run_id).returncode == 130
    assert json.loads((out / f"runs/{run_id}/run.json").read_text())["exit_reason"] == "interrupted"
    assert list((out / "runs/lease").glob("*.released"))


def refusal(*arguments: str, **variables: str) -> str:
    """Submit without a cluster, which exits with 2, and return the one line of the error."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | variables
    result = run_command(command(*arguments), environment)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr


def test_submit_checks_its_arguments_first(imagemill) -> None:
    places = ["--input", "s3://bucket/in", "--output", "s3://bucket/out"]
    unused_url = f"http://127.0.0.1:{free_port()}"
    assert f"dashboard {unused_url}: cannot be reached: no answer" in refusal("--dashboard", unused_url, *places)
    for arguments, message in (
        (["--dashboard", "http://ray.example.com:8265", *places], "--insecure"),
        # The option's old name still works; a Ray cluster's address differs from its dashboard's address.
        (["--address", "ray.example.com:6379", *places], "http(s)://HOST:8265"),
        (["--dashboard", unused_url, "--input", "s3://bucket/in"], "every node mounts"),
        (["--dashboard", unused_url, "--input", "photos", "--output", "s3://bucket/out"], "full path of a shared disk"),
    ):
        code, _, err = imagemill("submit", "--set", "task=denoise", *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err


def test_submit_says_what_to_install_for_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ray[default], a head on this machine has no dashboard, and thus no jobs."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # `connect` sets the variable
    monkeypatch.setattr("imagemill.jobs.submit.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"no answer\. .* pip install 'ray\[default\]==2\."):
        connect(f"http://127.0.0.1:{free_port()}", insecure=False)


class OtherRay(BaseHTTPRequestHandler):
    """Serve the dashboard of a cluster with another version of Ray and without a token."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2.59.1", "ray_commit": ""}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_submit_refuses_another_version_of_ray() -> None:
    server = HTTPServer(("127.0.0.1", 0), OtherRay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    dashboard = f"http://127.0.0.1:{server.server_port}"
    arguments = ["--dashboard", dashboard, "--input", "s3://bucket/in", "--output", "s3://bucket/out"]
    try:
        result = run_command(command(*arguments), dict(os.environ))
    finally:
        server.shutdown()
    warning, error = result.stderr.splitlines()
    assert "requires no token" in warning
    assert "the cluster runs Ray 2.59.1" in error
    assert result.returncode == 2


def test_submit_imports_no_torch() -> None:
    code = (
        "import sys, imagemill.jobs.submit, imagemill.jobs.nightly, imagemill.jobs.process; sys.exit('torch' in sys.modules)"
    )
    assert run_command([sys.executable, "-c", code], dict(os.environ)).returncode == 0
