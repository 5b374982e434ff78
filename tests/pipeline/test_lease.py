import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.pipeline.errors import Interrupted, OutputHeld, StorageError
from imagemill.pipeline.output.lease import BEAT_SECONDS, FOLDER, LIFETIME_SECONDS, Lease, newest_fencing_token
from imagemill.pipeline.storage import Store

ROOT = Path(__file__).parents[2]
HONEST = pytest.mark.parametrize("any_url", ["local", "moto"], indirect=True)
DIE_HOLDING = """
import os, signal, sys
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.storage import Store
lease = Lease(Store(sys.argv[1])).__enter__()
print(lease.fencing_token, flush=True)
os._exit(9) if sys.argv[2] == "exit" else os.kill(os.getpid(), signal.SIGKILL)
"""
HOLD = """
import sys
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.storage import Store
with Lease(Store(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@HONEST
def test_lease_refuses_a_second_holder(any_url: str) -> None:
    output = Store(any_url)
    with Lease(output) as first:
        for _ in range(2):
            with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
                Lease(Store(any_url)).__enter__()
        assert newest_fencing_token(output) == first.fencing_token
    with Lease(Store(any_url)) as second:
        assert second.fencing_token > first.fencing_token


@HONEST
def test_lease_token_rises_and_old_claims_are_removed(any_url: str) -> None:
    output, fences = Store(any_url), []
    for _ in range(6):
        with Lease(output) as lease:
            fences.append(lease.fencing_token)
            assert newest_fencing_token(Store(any_url)) == lease.fencing_token
    assert fences == [1, 2, 3, 4, 5, 6]
    assert len([e for e in output.entries(FOLDER) if e.path.endswith(".json")]) <= 3


def test_lease_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), Lease(Store(str(tmp_path))):
        raise ValueError("inside")
    with Lease(Store(str(tmp_path))) as lease:
        assert lease.fencing_token == 2


@pytest.mark.parametrize("moment", ["claimed", "releasing"])
def test_lease_is_free_after_a_signal(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives after the claim is written, or before the file that releases it."""
    output, create = Store(str(tmp_path)), Store.create

    def interrupted_create(store: Store, path: str, data: bytes) -> bool:
        if moment == "releasing" and path.endswith("released"):
            signal.raise_signal(signal.SIGALRM)
        created = create(store, path, data)
        if moment == "claimed" and path.endswith("json"):
            monkeypatch.setattr(Store, "create", create)
            signal.raise_signal(signal.SIGALRM)
        return created

    def interrupt(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(Store, "create", interrupted_create)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted), Lease(output):
            assert moment == "releasing", "the signal was lost"
    finally:
        signal.signal(signal.SIGALRM, previous)
        monkeypatch.undo()
    with Lease(output) as lease:
        assert lease.fencing_token == 2


@pytest.mark.parametrize(
    ("any_url", "death"), [("local", "exit"), ("local", "kill"), ("moto", "kill")], indirect=["any_url"]
)
def test_lease_of_a_dead_process_is_taken_over(any_url: str, death: str) -> None:
    with start(DIE_HOLDING, any_url, death) as holder:
        out, _ = holder.communicate(timeout=60)
    assert out == "1\n"
    assert holder.returncode == (9 if death == "exit" else -signal.SIGKILL)
    with Lease(Store(any_url)) as lease:
        assert lease.fencing_token == 2


def test_lease_of_a_living_process_keeps_others_out(tmp_path: Path) -> None:
    with start(HOLD, str(tmp_path)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputHeld, match=f"process {holder.pid}"):
            Lease(Store(str(tmp_path))).__enter__()
        holder.kill()
        holder.wait()
        with Lease(Store(str(tmp_path))) as lease:
            assert lease.fencing_token == 2


def test_lease_refusal_changes_nothing(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    with Lease(output):
        content = {e.path: output.read(e.path) for e in output.entries()}
        with pytest.raises(OutputHeld):
            Lease(output).__enter__()
        assert {e.path: output.read(e.path) for e in output.entries()} == content


class RemoteHolder:
    """A lease holder on another machine, and a fake clock for the machine that watches it."""

    def __init__(self, output: Store, skew_s: float, death_s: float, version: str) -> None:
        self.output, self.skew_s, self.death_s, self.version = output, skew_s, death_s, version
        self.elapsed, self.slept, self.next_beat = 0.0, 0.0, BEAT_SECONDS
        identity = {"token": "x", "machine": "far/1/pid:[1]", "pid": 1, "started": "1"}
        output.write(f"{FOLDER}/00000004.json", json.dumps(identity | self.heartbeat()).encode())

    def heartbeat(self) -> dict[str, float]:
        content = {"at": 1.8e9 + self.skew_s + self.elapsed}
        return content | ({"monotonic": 7e6 + self.skew_s + self.elapsed} if self.version == "0.2" else {})

    def time(self) -> float:
        return 1.8e9 + self.elapsed

    def monotonic(self) -> float:
        return 5e5 + self.elapsed

    def sleep(self, seconds: float) -> None:
        self.elapsed += seconds
        self.slept += seconds
        while self.next_beat <= min(self.elapsed, self.death_s):
            self.next_beat += BEAT_SECONDS
            self.output.write(f"{FOLDER}/00000004.beat", json.dumps(self.heartbeat()).encode())


@given(
    skew_s=st.one_of(st.sampled_from([-86400.0, -300.0, 0.0, 86400.0]), st.floats(-1e9, 1e9)),
    death_s=st.one_of(st.just(math.inf), st.floats(0, 9)),
    age_s=st.floats(0, 100),
    version=st.sampled_from(["0.1", "0.2"]),
)
@settings(max_examples=60)
def test_lease_ignores_clocks_of_other_machines(
    tmp_path_factory, skew_s: float, death_s: float, age_s: float, version: str
) -> None:
    """A remote holder is alive while its heartbeat changes, and dead after a minute without."""
    output = Store(str(tmp_path_factory.mktemp("out")))
    remote = RemoteHolder(output, skew_s, death_s, version)
    remote.sleep(age_s)
    remote.slept = 0.0
    with patch("imagemill.pipeline.output.lease.time", remote):
        if death_s == math.inf:
            with pytest.raises(OutputHeld, match="process 1 on far"):
                Lease(output).__enter__()
            assert remote.slept <= 2 * BEAT_SECONDS
        else:
            with Lease(output) as lease:
                assert lease.fencing_token == 5
            assert LIFETIME_SECONDS <= remote.slept <= LIFETIME_SECONDS + 2 * BEAT_SECONDS


def test_lease_wait_names_the_holder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = Store(str(tmp_path))
    remote = RemoteHolder(output, 86400, 0, "0.1")
    with (
        caplog.at_level(logging.INFO, "imagemill.lease"),
        patch("imagemill.pipeline.output.lease.time", remote),
        Lease(output),
    ):
        pass
    [message] = [r.getMessage() for r in caplog.records]
    assert message == (
        f"{output.url}: process 1 on far did not release this output. "
        "Waiting up to 60 s for its heartbeat before taking over"
    )


def test_lease_release_ends_the_wait(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    remote = RemoteHolder(output, 0, 0, "0.1")
    remote.sleep = lambda seconds: output.write(f"{FOLDER}/00000004.released", b"")  # type: ignore[method-assign]
    with patch("imagemill.pipeline.output.lease.time", remote), Lease(output) as lease:
        assert lease.fencing_token == 5


def test_lease_goes_to_the_faster_contender(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    remote = RemoteHolder(output, 0, 0, "0.1")
    remote.sleep = lambda seconds: output.write(f"{FOLDER}/00000005.json", b"{}")  # type: ignore[method-assign]
    with patch("imagemill.pipeline.output.lease.time", remote), pytest.raises(OutputHeld, match="has just taken"):
        Lease(output).__enter__()


@pytest.mark.parametrize("claim", [b"", b'{"token": "x", "mach', b"[]", b"{}"])
def test_lease_waits_for_an_incomplete_claim(tmp_path: Path, claim: bytes) -> None:
    """Without hard links, a claim file is visible before it is completely written."""
    output = Store(str(tmp_path))
    remote = RemoteHolder(output, 0, 0, "0.1")
    whole_claim = output.read(f"{FOLDER}/00000004.json")
    output.write(f"{FOLDER}/00000004.json", claim)
    complete_later = patch.object(remote, "sleep", lambda seconds: output.write(f"{FOLDER}/00000004.json", whole_claim))
    with (
        patch("imagemill.pipeline.output.lease.time", remote),
        complete_later,
        pytest.raises(OutputHeld, match="process 1 on far"),
    ):
        Lease(output).__enter__()
    output.write(f"{FOLDER}/00000004.json", claim)
    with patch("imagemill.pipeline.output.lease.time", remote), Lease(output) as lease:
        assert (lease.fencing_token, remote.slept) == (5, LIFETIME_SECONDS)


def test_lease_survives_a_changed_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTP moves the clock of this machine by a day, in either direction, during a run."""
    output, real_time = Store(str(tmp_path)), time.time
    with Lease(output):
        for jump_s in (-86400, 86400):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real_time() + jump_s)
            with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
                Lease(Store(str(tmp_path))).__enter__()


def test_lease_renewal_is_a_sign_of_life(tmp_path: Path) -> None:
    """The fencing token rises after planning, which may take longer than the lease lifetime."""
    output = Store(str(tmp_path))
    with Lease(output) as lease:
        claim = json.loads(output.read(lease.claim)) | {"monotonic": time.monotonic() - 10 * LIFETIME_SECONDS}
        output.write(lease.claim, json.dumps(claim).encode())
        lease.raise_above(7)
        with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
            Lease(Store(str(tmp_path))).__enter__()


def test_lease_of_a_silent_local_process_is_taken_over(tmp_path: Path) -> None:
    """The heartbeat contains the monotonic clock, which all processes of a machine share."""
    output = Store(str(tmp_path))
    with Lease(output) as first:
        claim = json.loads(output.read(first.claim)) | {"monotonic": time.monotonic() - LIFETIME_SECONDS}
        output.write(first.claim, json.dumps(claim).encode())
        with Lease(Store(str(tmp_path))) as second:
            assert second.fencing_token == 2
        with pytest.raises(OutputHeld):
            first.check_held()


def test_lease_is_renewed_during_cleanup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing a large output takes longer than the lease lifetime."""
    output, walk, claim = Store(str(tmp_path)), Store.sweep, f"{FOLDER}/00000001"

    def long_walk(store: Store, spare: str) -> None:
        monkeypatch.setattr(Store, "sweep", walk)
        output.write(f"{claim}.json", json.dumps(json.loads(output.read(f"{claim}.json")) | {"monotonic": 0.0}).encode())
        for _ in range(1000):
            if output.exists(f"{claim}.beat"):
                break
            time.sleep(0.01)
        with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
            Lease(Store(store.url)).__enter__()

    monkeypatch.setattr("imagemill.pipeline.output.lease.BEAT_SECONDS", 0.01)
    monkeypatch.setattr(Store, "sweep", long_walk)
    with Lease(output) as lease:
        assert lease.fencing_token == 1


def test_lease_lost_during_cleanup_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Store(str(tmp_path))
    monkeypatch.setattr(Store, "sweep", lambda store, spare: store.write(f"{FOLDER}/00000002.json", b"{}"))
    with pytest.raises(OutputHeld, match="another run took over"):
        Lease(output).__enter__()
    assert "lease" not in [thread.name for thread in threading.enumerate()]


def test_lease_ignores_foreign_files(tmp_path: Path) -> None:
    """Some file systems create extra files next to each copied file."""
    output = Store(str(tmp_path))
    output.write(f"{FOLDER}/._00000001.json", b"of a copy")
    with Lease(output) as lease:
        assert lease.fencing_token == 1


def test_lease_of_an_unwritable_output_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be"):
        Lease(Store(str(tmp_path / "file/out"))).__enter__()


def test_lease_detects_a_store_without_conditional_puts(rclone_bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{rclone_bucket}/out"
    with caplog.at_level(logging.WARNING, "imagemill.lease"), Lease(Store(url)) as first:
        assert "ignores conditional puts" in caplog.text
        with pytest.raises(OutputHeld, match=f"process {os.getpid()}"):
            Lease(Store(url)).__enter__()
    with Lease(Store(url)) as second:
        assert second.fencing_token == first.fencing_token + 1


@HONEST
def test_lease_with_conditional_puts_warns_of_nothing(any_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "imagemill.lease"), Lease(Store(any_url)):
        pass
    assert caplog.text == ""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rpf", "true"], check=False).returncode != 0, reason="no PID namespaces here"
)
def test_lease_watches_a_holder_in_another_container(tmp_path: Path) -> None:
    """Pods on the host network share its name and boot id, but have separate process ids."""
    script = f"import imagemill.pipeline.output.lease\nimagemill.pipeline.output.lease.BEAT_SECONDS = 0.1\n{HOLD}"
    command = ["unshare", "-rpf", "--mount-proc", "--kill-child", sys.executable, "-c", script, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OutputHeld, match="process 1 on"), Lease(Store(str(tmp_path))):
        pass
    holder.communicate("", timeout=60)
    with Lease(Store(str(tmp_path))) as lease:
        assert lease.fencing_token == 2
