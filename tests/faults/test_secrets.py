"""Files and messages of a run contain no secret, neither a valid nor an invalid one."""

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.engines import RAY_IN_CHAOS
from tests.support.run_processes import make_photos
from tests.support.servers import environment_of, rclone


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a short path for Ray's sessions, because socket paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def files_with(needle: str, *folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if needle.encode() in path.read_bytes()]


@pytest.mark.parametrize("engine", RAY_IN_CHAOS)
def test_run_writes_and_logs_no_secret(
    engine: str, tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch, crops
) -> None:
    secret, wrong_secret, token = (secrets.token_hex(20) for _ in range(3))
    server = rclone(tmp_path / "s3", "--auth-key", f"someone,{secret}")
    endpoint = f"http://127.0.0.1:{server.port}"
    # Each request carries the token of a role; this server ignores it.
    credentials = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}
    # With JSON logs, the workers also log each reject; local workers log it to stderr.
    for name, value in (environment_of(endpoint) | credentials | {"IMAGEMILL_LOG": "json"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "s3/data/bucket").mkdir()
    command = [sys.executable, "-m", "imagemill", "denoise", "s3://bucket/in", "s3://bucket/out", "--engine", engine]
    server.start()
    try:
        Store("s3://bucket/in").fs.clear_instance_cache()
        source = Store("s3://bucket/in", StorageConfig(endpoint_url=endpoint))
        make_photos(source, 3, crops)
        source.write("broken.jpg", b"broken")
        accepted_run = subprocess.run(command, capture_output=True, text=True)
        assert accepted_run.returncode == 0, accepted_run.stderr
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong_secret)
        refused_run = subprocess.run(command, capture_output=True, text=True)
        assert '"error_class": "UnknownFormat"' in accepted_run.stderr or engine == "ray"
        assert refused_run.returncode == 5, refused_run.stderr
        assert refused_run.stderr.count("\n") == 1, refused_run.stderr
    finally:
        server.kill()
        Store("s3://bucket/in").fs.clear_instance_cache()
    for needle in (secret, wrong_secret, token):
        assert needle not in accepted_run.stdout + accepted_run.stderr + refused_run.stdout + refused_run.stderr
        assert files_with(needle, tmp_path / "s3/data", ray_folder) == []
