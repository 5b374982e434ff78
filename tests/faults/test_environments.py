"""Runs in odd environments: closed streams, no temporary folder, programs without a main module, users' files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.engines import RAY_IN_CHAOS
from tests.support.run_processes import make_photos

IMAGES = 4
IMAGEMILL = [sys.executable, "-m", "imagemill"]
# A notebook and a program from stdin have no file that another process could import, and no `if __name__ == "__main__"`.
PROGRAM = """
import threading, imagemill
def run():
    print(imagemill.run("denoise", input="in", output="out", engine=ENGINE).ok, flush=True)
thread = threading.Thread(target=run)
thread.start()
thread.join()
run()
"""

BROKEN_TORCH = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ImportError("libtorch_cpu.so: cannot open shared object file")
sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def folder(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return a folder with four photos in `in` and with files of the user that have names of our modules."""
    folder = tmp_path / "photos 📷 'of' Ü"
    make_photos(Store(str(folder / "in")), IMAGES, crops)
    for name in ("torch", "models", "pipeline", "jobs"):
        (folder / f"{name}.py").write_text("raise SystemExit('this is a file of the user')")
    return folder


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in which "$@" is the command."""
    command = ["bash", "-c", script, "bash", *IMAGEMILL, "denoise", "in", "out", "--engine", "local"]
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | environment
    return subprocess.run(command, capture_output=True, env=variables, cwd=folder, timeout=240)


def patch_python(folder: Path, code: str) -> dict[str, str]:
    """Return the environment of a Python that runs some code at its start."""
    (folder / "patch").mkdir()
    (folder / "patch/sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder / "patch"), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", pytest.param(">&-", marks=pytest.mark.chaos)])
def test_run_with_closed_streams(closed: str, folder: Path) -> None:
    """No file or socket gets the number of a closed stream, into which messages would be written."""
    result = shell(f'"$@" {closed}', folder)
    assert result.returncode == 0, result.stderr
    assert verify(Store(str(folder / "out"))).rows == IMAGES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", RAY_IN_CHAOS)
def test_program_from_stdin_in_a_folder_of_the_user(engine: str, folder: Path) -> None:
    """The program has no main module and runs in a thread. Its folder holds a torch.py, and TMPDIR does not exist."""
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"TMPDIR": str(folder / "gone")}
    code = PROGRAM.replace("ENGINE", repr(engine))
    command = [sys.executable, "-"]
    options = {"capture_output": True, "text": True, "env": variables, "cwd": folder, "timeout": 280}
    result = subprocess.run(command, input=code, **options)
    assert (result.returncode, result.stdout) == (0, f"{IMAGES}\n0\n"), result.stderr
    assert result.stderr == ""


def test_run_without_temporary_folder_is_refused(folder: Path) -> None:
    environment = patch_python(folder, "import tempfile\ntempfile._candidate_tempdir_list = lambda: []\n")
    result = shell('"$@"', folder, **environment)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == (
        b"imagemill: TMPDIR: no folder for temporary files is writable. Set TMPDIR to a writable folder.\n"
    )


def test_run_whose_workers_cannot_import_torch_says_so(folder: Path) -> None:
    """The driver needs no torch, so the workers find the problem."""
    result = shell('"$@"', folder, **patch_python(folder, BROKEN_TORCH))
    err = result.stderr.decode()
    assert result.returncode == 1, err
    message = "worker processes cannot be started: ImportError: libtorch_cpu.so: cannot open shared object file"
    assert f"imagemill: {message}" in err
    assert "Traceback" not in err
    log = Path(err.splitlines()[-1].removeprefix("imagemill: messages of workers and of Ray's core are in "))
    assert "Traceback" in log.read_text()
    log.unlink()
    [record] = (folder / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_reason"] == f"RunFailed: {message}"


@pytest.mark.chaos
@pytest.mark.parametrize("files", range(8, 40, 2))
def test_run_with_few_descriptors_ends_or_works(files: int, folder: Path) -> None:
    """A run that cannot open a file or a socket ends with one line; it neither hangs nor loses an image."""
    result = shell(f'ulimit -n {files}; "$@"', folder)
    assert result.returncode in (0, 1, 2, 5), result.stderr
    if result.returncode == 0:
        assert verify(Store(str(folder / "out"))).rows == IMAGES
