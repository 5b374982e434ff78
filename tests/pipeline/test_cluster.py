"""Starting Ray: signals wait until it has started, and a failure is one line of text."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray._private import utils

from imagemill.pipeline.cluster.connection import STARTS, connected
from imagemill.pipeline.cluster.contact import SILENCE_SECONDS, contact
from imagemill.pipeline.cluster.own import SESSION_MARK, SESSIONS, delete_old_sessions
from imagemill.pipeline.engines.local_channel import LocalChannel
from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.signals import delay_signals
from imagemill.pipeline.tally import Tally


class Caught(BaseException):
    pass


def raise_caught(signum: int, frame: object) -> None:
    raise Caught(signum)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGALRM])
def test_signal_waits_for_the_start_of_ray(number: signal.Signals) -> None:
    previous_handler = signal.signal(number, raise_caught)
    starts: list[bool] = []

    def start() -> None:
        with delay_signals():
            signal.raise_signal(number)
            signal.raise_signal(number)
            # Ray resets SIGTERM in the same way.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            starts.append(True)

    try:
        with pytest.raises(Caught):
            start()
        assert starts
        assert signal.getsignal(number) is raise_caught
    finally:
        signal.signal(number, previous_handler)


def test_late_ray_is_restarted_and_then_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def time_out(**options: object) -> None:
        attempts.append(options)
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(RunFailed, match=r"^Ray did not start .*memory\? The current node timed out during startup\.$"),
        connected(None),
    ):
        pass
    assert len(attempts) == STARTS


def test_sigterm_waits_although_ray_sets_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` begins with a handler that ends the program with exit code 15."""

    def init(**options: object) -> None:
        utils.set_sigterm_handler(lambda signum, frame: sys.exit(signum))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    previous_handler = signal.signal(signal.SIGTERM, raise_caught)
    try:
        with pytest.raises(Caught), connected(None):
            pass
        assert signal.getsignal(signal.SIGTERM) is raise_caught
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a separate process, so that the Ray of this process stays."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.ray
def test_garbage_collection_survives_the_end_of_ray() -> None:
    result = run_code(
        """
import gc, ray
from imagemill.pipeline.cluster.connection import connected, endings
with connected(None, num_cpus=1):
    rings = [[ray.put(number)] for number in range(1_000)]
    for ring in rings:
        ring.append(ring)
while endings[-1].is_alive():
    # References are released at every moment of Ray's shutdown.
    ring = None
    del rings[-2:]
    gc.collect()
print(len(rings))
"""
    )
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_runs_of_a_night_share_ray_until_a_failure() -> None:
    result = run_code(
        """
import ray
from imagemill.pipeline.cluster.connection import connected, endings, share_ray
def session():
    with connected(None, num_cpus=1):
        return ray.get_runtime_context().get_node_id()
with share_ray():
    assert not ray.is_initialized()
    first = session()
    assert session() == first
    try:
        with connected(None):
            raise OSError
    except OSError:
        assert not ray.is_initialized()
    second = session()
    assert second != first
endings[-1].join()
assert not ray.is_initialized()
print("as said")
"""
    )
    assert (result.returncode, result.stdout) == (0, "as said\n"), result.stderr


def test_code_shipped_by_ray_imports_no_torch() -> None:
    code = "import sys, imagemill.pipeline.worker, imagemill.pipeline.cluster.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_old_ray_sessions_are_removed(tmp_path: Path) -> None:
    dead_process = subprocess.Popen(["true"])
    dead_process.wait()
    folders = [tmp_path / f"session_2026-01-{day:02d}_00-00-00_000000_{dead_process.pid}" for day in range(1, 20)]
    unmarked_session, live_session = (
        tmp_path / "session_2025-01-01_00-00-00_000000_1",
        tmp_path / f"session_2025-01-02_0_0_{os.getpid()}",
    )
    for folder in (*folders, unmarked_session, live_session):
        (folder / "logs").mkdir(parents=True)
    for folder in (*folders[:-1], live_session):
        (folder / SESSION_MARK).touch()
    latest = tmp_path / "session_latest"
    latest.symlink_to(folders[-2])
    delete_old_sessions(folders[-1])
    assert {*tmp_path.iterdir()} == {unmarked_session, live_session, latest, *folders[-SESSIONS:]}


def test_older_tally_never_replaces_a_newer_one() -> None:
    first_publish, newer_publish, published_counts = threading.Event(), threading.Event(), []

    class SlowChannel(LocalChannel):
        def publish(self, key: str, content: dict[str, int]) -> None:
            first_publish.set()
            if content["ok"] == 1:
                # The first tally is stored slowly.
                newer_publish.wait(0.5)
            published_counts.append(content["ok"])
            newer_publish.set()

    tally = Tally("r", SlowChannel())
    first = threading.Thread(target=tally.add, kwargs={"ok": 1})
    first.start()
    first_publish.wait()
    tally.add(ok=1)
    tally.flush()
    first.join()
    assert published_counts[-1] == 2


@pytest.mark.usefixtures("ray_session")
def test_connection_after_a_long_listing_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray got no requests during the listing, so its silence does not mean that it is lost."""
    monkeypatch.setattr(contact, "_last", time.monotonic() - 2 * SILENCE_SECONDS)
    with connected(None):
        contact.check()
