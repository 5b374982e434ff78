"""A private Ray starts only the processes that a run needs, and workers that import torch while Ray starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagemill.pipeline.storage import Store
from tests.support.run_processes import make_photos

PROCESSES = """
def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
def descendants():
    found, old_count = {os.getpid()}, 0
    while len(found) > old_count:
        old_count = len(found)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if parent(folder.name) in found:
                    found.add(int(folder.name))
            except OSError:
                pass
    return {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in found - {os.getpid()}}
"""
SHOW_RAY = f"""
import json, os, ray, sys, time
from pathlib import Path
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.run import run
{PROCESSES}
def has_torch(pid):
    return "libtorch" in Path(f"/proc/{{pid}}/maps").read_text()
with connected(None, num_cpus=2, workers=1):
    deadline = time.monotonic() + 60
    while not any(map(has_torch, descendants())) and time.monotonic() < deadline:
        time.sleep(0.1)
    commands = descendants()
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    print(json.dumps({{"commands": list(commands.values()), "pids": list(commands),
                       "worker": worker, "with_torch": [pid for pid in commands if has_torch(pid)]}}), flush=True)
    record = run(RunConfig(task="denoise", input=sys.argv[1], output=sys.argv[2], engine="ray"))
    from ray._private.state import actors
    names = [actor["ActorClassName"] for actor in actors().values()]
    print(json.dumps({{"ok": record["ok"], "actors": names}}), flush=True)
    sys.stdin.readline()
"""


def start_python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def read_report(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout
    return next(json.loads(line) for line in process.stdout if line.startswith(b"{"))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.ray
def test_ray_of_a_run_starts_few_processes_and_leaves_none(tmp_path: Path, crops: list[np.ndarray]) -> None:
    """The worker that Ray starts in advance has imported torch, and gets the work.

    Ray Data's own actors would take such a process, and delay the first image.
    """
    source = Store(str(tmp_path / "in"))
    make_photos(source, 6, crops)
    process = start_python(SHOW_RAY, source.url, str(tmp_path / "out"))
    report = read_report(process)
    # The other two stand in for the agents of the node.
    programs = sorted(Path(command.split("\0")[0]).name for command in report["commands"] if "-I" not in command.split("\0"))
    assert programs == ["gcs_server", "ray::IDLE", "raylet"]
    assert len(report["commands"]) == 5
    assert report["with_torch"] == [report["worker"]]
    run_report = read_report(process)
    assert run_report["ok"] == 6
    assert len(run_report["actors"]) == 2
    assert all("MapWorker" in name for name in run_report["actors"]), run_report["actors"]
    # Even without the node, which would end them, the processes that stand in for its agents do not stay.
    raylet = next(pid for pid, command in zip(report["pids"], report["commands"], strict=True) if "/raylet" in command[:200])
    os.kill(raylet, signal.SIGKILL)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while left := [pid for pid in report["pids"] if is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
