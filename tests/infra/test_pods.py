"""Test runs under the conditions of a pod: no user name or home, read-only root, drained node."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.manifests import KUBERNETES, ROOT, built, of_kind
from tests.support.run_processes import make_photos

CAN_ISOLATE = subprocess.run(["unshare", "-mpf", "true"], check=False, capture_output=True).returncode == 0
isolated = pytest.mark.skipif(not CAN_ISOLATE, reason="no namespaces here: this needs root")
NAMELESS = """
import os, pwd
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
os.environ.pop("HOME")
from imagemill.pipeline.cluster.connection import ensure_token
ensure_token()
print(len(os.environ["RAY_AUTH_TOKEN"]))
"""
BUSY = """
import sys
from imagemill.pipeline.cluster.connection import ensure_token
ensure_token()
import ray
def init(**options): raise Exception("The current node timed out during startup.")
ray.init = init
sys.argv = ["imagemill", "denoise", *sys.argv[1:]]
from imagemill.__main__ import main
main()
"""
POD = """
mount --make-rprivate / && mount --bind "$1" "$1" && mount -t tmpfs none /mnt
for place in $(findmnt -rn -o TARGET | grep -vE "^(/proc|/sys|/dev)"); do
  case $place in "$1"|/mnt) ;; *) mount -o remount,ro,bind "$place" 2>/dev/null || true ;; esac
done
cd "$2" && shift 2 && exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def test_user_without_name_and_home_gets_a_token() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | {"HOME": "/"}
    result = subprocess.run(
        [sys.executable, "-c", NAMELESS], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "64\n", result.stderr


@pytest.mark.ray
def test_run_reports_a_failed_start_of_ray_in_one_line(tmp_path: Path, crops: list[np.ndarray]) -> None:
    """Ray 2.60 raises a plain Exception after 30 s; this happened under a load of 60."""
    make_photos(Store(str(tmp_path / "in")), 1, crops)
    command = [sys.executable, "-c", BUSY, str(tmp_path / "in"), str(tmp_path / "out"), "--engine", "ray"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    _, starting, *messages = result.stderr.splitlines()
    assert starting.endswith("starting Ray on this machine")
    assert (result.returncode, messages) == (
        1,
        [
            "imagemill: Ray did not start on this machine. Is the machine busy, or short of memory? "
            "The current node timed out during startup."
        ],
    )


@isolated
def test_command_without_temporary_folder_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": "/nowhere"}
    command = [
        "unshare",
        "-m",
        "bash",
        "-ec",
        POD,
        "pod",
        str(tmp_path),
        str(ROOT),
        sys.executable,
        "-m",
        "imagemill",
        "models",
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "imagemill: TMPDIR: no folder for temporary files is writable. Set TMPDIR to a writable folder.\n",
    )


@isolated
@pytest.mark.chaos
def test_run_works_in_a_restricted_pod(tmp_path: Path, crops: list[np.ndarray]) -> None:
    """A run works with a read-only root, no home, no capabilities, and temporary files on a separate mount."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 40, crops)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": "/nonexistent", "TMPDIR": "/mnt"}
    product = [sys.executable, "-m", "imagemill", "denoise", source.url, output.url]
    command = ["unshare", "-mpf", "--mount-proc", "bash", "-ec", POD, "pod", str(tmp_path), str(ROOT), *product]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    verification = verify(output)
    assert (verification.images, verification.problems) == (40, [])


TOLD = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (print("told"), sys.exit()))
Path("ready").touch()
while True:
    time.sleep(0.05)
"""


@isolated
@pytest.mark.parametrize("run", ["./imagemill run -c job.yaml", "python3 -m imagemill run --run-id ID -c /dev/stdin"])
def test_drained_head_signals_its_run_first(tmp_path: Path, run: str) -> None:
    """The preStop hook of the head signals all runs among the processes of a pod, submitted ones too."""
    head = of_kind(built(KUBERNETES / "overlays/cpu"), "RayCluster")["imagemill"]["spec"]["headGroupSpec"]
    shell, flag, script = head["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert head["template"]["spec"]["terminationGracePeriodSeconds"] > 15
    # Write a script like pip does, so that the process has the name of the script.
    (tmp_path / "imagemill").write_text(f"#!{sys.executable}{TOLD}")
    (tmp_path / "imagemill").chmod(0o755)
    (tmp_path / "imagemill.py").write_text(TOLD)
    drained = f'{run} & until [ -e ready ]; do sleep 0.05; done; {shell} {flag} "$1"; wait'
    command = ["unshare", "-mpf", "--mount-proc", "bash", "-c", drained, "pod", script.replace("sleep 15", "sleep 0.1")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "told\n", result.stderr
