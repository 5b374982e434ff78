"""The Ray that a run starts: loopback addresses, CPUs, process groups, session folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagemill.pipeline.cluster import own
from imagemill.pipeline.cluster.own import OVERRIDE, session_folder, whole_cpus
from imagemill.pipeline.errors import ConfigError

LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, its IPv6 form and ::1, in the notation of /proc/net."""
SHOW_RAY = """
import json, os, ray
from pathlib import Path
from imagemill.pipeline.cluster.connection import connected
def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
def family():
    members, old_count = {os.getpid()}, 0
    while len(members) > old_count:
        old_count = len(members)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if parent(folder.name) in members:
                    members.add(int(folder.name))
            except OSError:
                pass
    return members
with connected(None):
    ray.get(ray.remote(lambda: 1).remote())
    cpus, pids = ray.cluster_resources()["CPU"], family()
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:
                pass
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = [(line[1].split(":")[0], line[3]) for line in lines if f"socket:[{line[9]}]" in sockets]
    groups = [os.getpgid(pid) for pid in pids if pid != os.getpid() and os.path.exists(f"/proc/{pid}")]
print(json.dumps({"cpus": cpus, "sockets": addresses, "groups": groups, "group": os.getpgrp()}))
"""


@pytest.mark.ray
def test_own_ray_listens_on_loopback_and_in_its_own_groups() -> None:
    """Ray survives a lost VPN or Wi-Fi, is closed to other machines, and gets no signals."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {OVERRIDE: '{"CPU": 0.5}'}
    process = subprocess.run([sys.executable, "-c", SHOW_RAY], capture_output=True, env=environment, timeout=240)
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["cpus"] == 1
    listening = [address for address, state in report["sockets"] if state == LISTENING]
    assert len(listening) > 4
    assert set(listening) <= LOOPBACK
    assert report["group"] not in report["groups"]
    assert len(report["groups"]) > 4


@pytest.mark.parametrize(
    ("resources", "cpus"),
    [({"CPU": 0.5}, 1), ({"CPU": 1.5, "GPU": 1}, 1), ({"CPU": 2}, 2), ({"CPU": 0}, 0), ({"GPU": 1}, None)],
)
def test_own_cpus_are_whole_in_overridden_resources(resources, cpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray rejects a fractional CPU in RAY_OVERRIDE_RESOURCES."""
    monkeypatch.setenv(OVERRIDE, json.dumps(resources))
    whole_cpus()
    assert json.loads(os.environ[OVERRIDE]).get("CPU") == cpus


@pytest.mark.parametrize("text", ["{", "[1]", '{"CPU": "two"}'])
def test_own_resources_that_cannot_be_read_are_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, text)
    with pytest.raises(ConfigError, match=f"^{OVERRIDE}="):
        whole_cpus()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a file over that of the kernel")
@pytest.mark.parametrize(("version", "quota"), [(1, "50000"), (2, "50000 100000")])
def test_own_cpus_are_one_under_a_quota_of_half(version: int, quota: str, tmp_path: Path) -> None:
    """A container with half a CPU gets one worker, although Ray rounds down to no CPU."""
    (tmp_path / "quota").write_text(quota)
    mounts = {
        1: f"mount --bind {tmp_path}/quota /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        2: f"mount -t tmpfs none /sys/fs/cgroup && cp {tmp_path}/quota /sys/fs/cgroup/cpu.max",
    }
    if version == 1 and not os.path.exists("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        pytest.skip("this kernel has cgroups of version 2 alone")
    code = "from imagemill.pipeline.cluster.own import whole_cpus; print(whole_cpus())"
    process = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mounts[version]} && exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        timeout=120,
    )
    if b"Operation not permitted" in process.stderr:
        pytest.skip("no mounts here")
    assert process.stdout == b"1\n", process.stderr


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose path is too long for Unix sockets."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (tmp_path / ("x" * 60)).mkdir()
    return tmp_path / ("x" * 60)


def test_own_session_is_in_a_short_folder_if_tmpdir_is_long(folders: Path, monkeypatch, caplog) -> None:
    """The path of a Unix socket has at most 107 bytes."""
    monkeypatch.setenv("TMPDIR", str(folders))
    assert session_folder() == "/tmp"
    assert f"TMPDIR={folders}: Ray's sockets need a folder whose path has at most 39 bytes. Ray uses /tmp" in caplog.text
    monkeypatch.setenv("RAY_TMPDIR", str(folders))
    with pytest.raises(ConfigError, match=r"^RAY_TMPDIR=.* Set RAY_TMPDIR to a shorter path"):
        session_folder()


def test_own_session_folder_that_is_unusable_is_named(folders: Path, monkeypatch, caplog) -> None:
    """The error names the environment variable and does not blame the memory."""
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    assert session_folder() == "/tmp"
    assert "TMPDIR=/nowhere/at/all: the folder does not exist. Temporary files go to /tmp" in caplog.text
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere/at/all")
    with pytest.raises(ConfigError, match=r"^RAY_TMPDIR=/nowhere/at/all: the folder does not exist"):
        session_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert session_folder() == "/tmp"
    monkeypatch.setattr(own, "SESSION_BYTES", 10**18)
    with pytest.raises(ConfigError, match=r"^RAY_TMPDIR=/tmp: .* MB are free, but Ray needs"):
        session_folder()
