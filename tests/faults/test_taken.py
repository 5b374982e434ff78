"""A run reports a busy cluster or a lost network, and then continues or ends."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.clusters import RayCluster
from tests.support.run_processes import make_photos

pytestmark = pytest.mark.chaos
TOKEN = "e" * 64
HOLD = """
import os, sys, ray
ray.init(address=os.environ["HELD"], log_to_driver=False, namespace="held")
Holder = ray.remote(num_cpus=1)(type("Holder", (), {"ready": lambda self: 1}))
holder = Holder.options(lifetime="detached", name="h").remote()
ray.get(holder.ready.remote())
print("held", flush=True)
sys.stdin.readline()
ray.kill(holder)
"""
WITHOUT_ADDRESS = """
set -e
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add 10.9.9.1/24 dev v0
ip link set v0 up; ip link set v1 up
ip route add default via 10.9.9.2 dev v0
exec "$@"
"""
IN_NAMESPACE = """
import subprocess, sys, time
sys.path[:0] = PATHS
from tests.support.clusters import RayCluster
cluster, command, log = RayCluster(token="e" * 64), sys.argv[2:], open(sys.argv[1], "wb+")
try:
    if CLUSTER:
        cluster.start(cpus=2, dashboard=False)
        command += ["--address", cluster.address]
    run = subprocess.Popen(command, env=cluster.variables(), stderr=log, stdout=log)
    while run.poll() is None and b" of 1 CPU" not in open(sys.argv[1], "rb").read():
        time.sleep(0.2)
    time.sleep(7)
    subprocess.run(["ip", "addr", "del", "10.9.9.1/24", "dev", "v0"], check=True)
    print(run.wait(timeout=200))
finally:
    cluster.stop()
"""


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    ray_cluster = RayCluster(token=TOKEN)
    try:
        ray_cluster.start(cpus=1, dashboard=False)
        yield ray_cluster
    finally:
        ray_cluster.stop()


@pytest.fixture
def cpu_holder(cluster: RayCluster) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that holds the only CPU of the cluster until it reads a line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    variables = cluster.variables() | {"HELD": cluster.address}
    holder = subprocess.Popen([sys.executable, "-c", HOLD], env=variables, **pipes)
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_run_waits_for_a_busy_cluster(cluster, cpu_holder, tmp_path: Path, crops: list[np.ndarray]) -> None:
    """The plan and the run report that no CPU is free; the run waits for a CPU until its time limit."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 4, crops)
    places = ["--input", source.url, "--output", output.url, "--address", cluster.address]
    imagemill = [sys.executable, "-m", "imagemill"]
    options = {"env": cluster.variables(), "capture_output": True, "text": True, "timeout": 300}
    plan_result = subprocess.run([*imagemill, "plan", "--task", "denoise", *places], **options)
    assert "0 of 1 CPUs are free: 0 of 1 workers can start" in plan_result.stdout, plan_result.stderr
    command = [*imagemill, "denoise", source.url, output.url, "--address", cluster.address]
    limited_result = subprocess.run([*command, "--set", "pool={workers: 1, wait_s: 5}"], **options)
    assert limited_result.returncode == 1
    last = limited_result.stderr.splitlines()[-1]
    assert re.fullmatch("imagemill: (other work has held the cluster.*0 of 1 CPUs are free|messages of workers).*", last)
    assert "Traceback" not in limited_result.stderr
    with (tmp_path / "log").open("wb+") as log:
        run = subprocess.Popen(command, env=cluster.variables(), stderr=log, stdout=log)
        while run.poll() is None and b"0 of 1 CPUs are free" not in (tmp_path / "log").read_bytes():
            time.sleep(0.2)
        cpu_holder.stdin.write("free\n")
        cpu_holder.stdin.flush()
        assert run.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert verify(output).rows == 4


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="makes a network namespace")
@pytest.mark.parametrize("own", [True, False], ids=["own Ray", "cluster"])
def test_run_outlives_its_address(own: bool, tmp_path: Path, crops: list[np.ndarray]) -> None:
    """A run with its own Ray continues; a run on a cluster ends with one line and writes run.json."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 600, crops)
    command = [sys.executable, "-m", "imagemill", "denoise", source.url, output.url, "--engine", "ray"]
    root = str(Path(__file__).parents[2])
    script = IN_NAMESPACE.replace("PATHS", repr([root])).replace("CLUSTER:", f"{not own}:")
    inner_command = [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "log"),
        *command,
        *("--set", "pool.batch_size=1", "--set", "rows_per_part=5"),
    ]
    outer_command = ["unshare", "-n", "sh", "-c", WITHOUT_ADDRESS, "sh", *inner_command]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(outer_command, capture_output=True, text=True, timeout=290, env=environment)
    if "Operation not permitted" in result.stderr:
        pytest.skip("no network namespaces here")
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    code = json.loads(record.read_bytes())["exit_code"]
    assert (result.stdout, code) == (f"{code}\n", 0 if own else 1), log + result.stderr
    if not own:
        assert "imagemill: Ray has not answered for 40 s" in log
