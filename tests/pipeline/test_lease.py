import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import OutputHeld, StorageError
from pipeline.output.lease import FOLDER, Lease, newest_fence
from pipeline.storage import Store

ROOT = Path(__file__).parents[2]
HONEST = pytest.mark.parametrize("any_url", ["local", "moto"], indirect=True)
DIE_HOLDING = """
import os, signal, sys
from pipeline.output.lease import Lease
from pipeline.storage import Store
lease = Lease(Store(sys.argv[1])).__enter__()
print(lease.fence, flush=True)
os._exit(9) if sys.argv[2] == "exit" else os.kill(os.getpid(), signal.SIGKILL)
"""
HOLD = """
import sys
from pipeline.output.lease import Lease
from pipeline.storage import Store
with Lease(Store(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@HONEST
def test_a_second_holder_is_refused_until_the_first_is_done(any_url: str) -> None:
    output = Store(any_url)
    with Lease(output) as first:
        for _ in range(2):
            with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
                Lease(Store(any_url)).__enter__()
        assert newest_fence(output) == first.fence
    with Lease(Store(any_url)) as second:
        assert second.fence > first.fence


@HONEST
def test_the_fence_rises_with_each_holder_and_old_claims_are_cleared(any_url: str) -> None:
    output, fences = Store(any_url), []
    for _ in range(6):
        with Lease(output) as lease:
            fences.append(lease.fence)
            assert newest_fence(Store(any_url)) == lease.fence
    assert fences == [1, 2, 3, 4, 5, 6]
    assert len([e for e in output.entries(FOLDER) if e.path.endswith(".json")]) <= 3


def test_it_is_free_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), Lease(Store(str(tmp_path))):
        raise ValueError("inside")
    with Lease(Store(str(tmp_path))) as lease:
        assert lease.fence == 2


@pytest.mark.parametrize(
    ("any_url", "death"), [("local", "exit"), ("local", "kill"), ("moto", "kill")], indirect=["any_url"]
)
def test_the_claim_of_a_dead_process_is_taken_over_at_once(any_url: str, death: str) -> None:
    with start(DIE_HOLDING, any_url, death) as holder:
        out, _ = holder.communicate(timeout=60)
    assert out == "1\n"
    assert holder.returncode == (9 if death == "exit" else -signal.SIGKILL)
    with Lease(Store(any_url)) as lease:
        assert lease.fence == 2


def test_a_living_process_keeps_others_out_until_it_is_killed(tmp_path: Path) -> None:
    with start(HOLD, str(tmp_path)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputHeld, match=f"process {holder.pid}"):
            Lease(Store(str(tmp_path))).__enter__()
        holder.kill()
        holder.wait()
        with Lease(Store(str(tmp_path))) as lease:
            assert lease.fence == 2


def test_a_refused_holder_changes_nothing(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    with Lease(output):
        before = {e.path: output.read(e.path) for e in output.entries()}
        with pytest.raises(OutputHeld):
            Lease(output).__enter__()
        assert {e.path: output.read(e.path) for e in output.entries()} == before


def test_a_claim_of_another_machine_is_believed(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    output.write(f"{FOLDER}/00000004.json", b'{"token": "x", "machine": "far/1", "pid": 1, "started": "1", "at": 4e9}')
    with pytest.raises(OutputHeld, match="process 1 on far"):
        Lease(output).__enter__()


def test_a_claim_that_was_not_heard_of_for_long_is_taken_over(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    output.write(f"{FOLDER}/00000004.json", b'{"token": "x", "machine": "far/1", "pid": 1, "started": "1", "at": 1e9}')
    with Lease(output) as lease:
        assert lease.fence == 5


def test_a_claim_is_renewed_while_its_holder_clears_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk over all of a large OUTPUT takes longer than a claim lives."""
    output, walk, claim = Store(str(tmp_path)), Store.sweep, f"{FOLDER}/00000001"

    def long_walk(store: Store, spare: str) -> None:
        monkeypatch.setattr(Store, "sweep", walk)
        output.write(f"{claim}.json", json.dumps(json.loads(output.read(f"{claim}.json")) | {"at": 0}).encode())
        for _ in range(1000):
            if output.exists(f"{claim}.beat"):
                break
            time.sleep(0.01)
        with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
            Lease(Store(store.url)).__enter__()

    monkeypatch.setattr("pipeline.output.lease.BEAT_SECONDS", 0.01)
    monkeypatch.setattr(Store, "sweep", long_walk)
    with Lease(output) as lease:
        assert lease.fence == 1


def test_who_was_overtaken_while_it_cleared_away_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Store(str(tmp_path))
    monkeypatch.setattr(Store, "sweep", lambda store, spare: store.write(f"{FOLDER}/00000002.json", b"{}"))
    with pytest.raises(OutputHeld, match="another run took it"):
        Lease(output).__enter__()
    assert "lease" not in [thread.name for thread in threading.enumerate()]


def test_what_is_no_claim_is_not_counted(tmp_path: Path) -> None:
    """A copy by way of some file systems leaves files of its own beside each one."""
    output = Store(str(tmp_path))
    output.write(f"{FOLDER}/._00000001.json", b"of a copy")
    with Lease(output) as lease:
        assert lease.fence == 1


def test_an_output_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be"):
        Lease(Store(str(tmp_path / "file/out"))).__enter__()


def test_a_server_without_conditional_puts_is_detected_and_serves_one_holder(
    rclone_bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{rclone_bucket}/out"
    with caplog.at_level(logging.WARNING, "imagemill.lease"), Lease(Store(url)) as first:
        assert "ignores conditional puts" in caplog.text
        with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
            Lease(Store(url)).__enter__()
    with Lease(Store(url)) as second:
        assert second.fence == first.fence + 1


@HONEST
def test_a_server_with_conditional_puts_gets_no_warning(any_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "imagemill.lease"), Lease(Store(any_url)):
        pass
    assert caplog.text == ""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rpf", "true"], check=False).returncode != 0, reason="no PID namespaces here"
)
def test_a_holder_in_another_container_of_this_machine_is_believed(tmp_path: Path) -> None:
    """Two pods on the network of their host have its name and its boot, and numbers of processes of their own."""
    command = ["unshare", "-rpf", "--mount-proc", "--kill-child", sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OutputHeld, match="process 1 on"), Lease(Store(str(tmp_path))):
        pass
    holder.communicate("", timeout=60)
    with Lease(Store(str(tmp_path))) as lease:
        assert lease.fence == 2
