"""A Store returns the written data over a connection that breaks, damages and loses data."""

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagemill.pipeline.storage import Store
from tests.support.servers import S3

ONE_OF_EACH = {"busy": 0.2, "reset": 0.1, "lost": 0.05, "reset_middle": 0.1, "truncate": 0.1, "latency_s": 0.01}
DAMAGE = {"corrupt_get": 0.2, "corrupt_put": 0.2}


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("faults", [ONE_OF_EACH, DAMAGE], ids=["broken", "damaged"])
def test_store_reads_what_was_written_over_bad_connection(s3: S3, faults: dict[str, float]) -> None:
    store = s3.store("in")
    s3.faults(seed=1, **faults)
    content = {f"{n % 3}/{n}.bin": secrets.token_bytes(n * 500) for n in range(20)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, content[name]), content))
        assert dict(zip(content, pool.map(store.read, content), strict=True)) == content
        assert set(pool.map(lambda name: store.create(name, b"other"), content)) == {False}
        contents = {f"new/{n}": secrets.token_bytes(99) for n in range(10)}
        assert set(pool.map(lambda name: store.create(name, contents[name]), contents)) == {True}
        assert {e.path: e.size for e in store.entries()} == {n: len(data) for n, data in (content | contents).items()}
        assert all(pool.map(store.exists, contents))
        assert not store.exists("nothing")
        list(pool.map(store.delete, contents))
    assert {e.path for e in store.entries()} == set(content)
    proxy_state = s3.seen()
    assert all(proxy_state["counts"][name] for name in faults if name != "latency_s"), proxy_state["counts"]
    assert proxy_state["swallowed"] == []


@pytest.mark.usefixtures("short_waits")
def test_store_range_is_complete_despite_cut_connections(s3: S3) -> None:
    store = s3.store("in")
    store.write("a", bytes(range(100)))
    s3.faults(seed=1, truncate=0.25)
    assert [store.read_range("a", n, 50) for n in range(5)] == [bytes(range(n, n + 50)) for n in range(5)]
    assert s3.seen()["counts"]["truncate"]


def test_store_waits_for_a_restarted_server(s3: S3) -> None:
    store = s3.store("in")
    content = {f"{n}.bin": secrets.token_bytes(1000) for n in range(60)}

    def kill() -> None:
        for server in (s3.front, s3.behind):
            time.sleep(0.5)
            server.kill()
            time.sleep(0.5)
            server.start()

    killer = threading.Thread(target=kill)
    killer.start()
    rounds = 0
    while killer.is_alive() or not rounds:
        rounds += 1
        for name, data in content.items():
            store.write(name, data)
            assert store.read(name) == data
    killer.join()
    assert {name: store.read(name) for name in content} == content


@pytest.mark.usefixtures("short_waits")
def test_store_reports_permanent_errors_at_once(s3: S3) -> None:
    store = s3.store("in")
    store.write("there", secrets.token_bytes(1000))
    s3.faults(forbid="/in/")
    start_s = time.monotonic()
    with pytest.raises(PermissionError):
        store.write("there", b"2")
    with pytest.raises(FileNotFoundError):
        store.read("gone")
    assert not store.exists("gone")
    counts = s3.seen()["counts"]
    assert counts["forbid"] == 1
    assert counts["requests"] < 10
    assert time.monotonic() - start_s < 10
    s3.faults(corrupt_get=1.0)
    with pytest.raises(OSError, match="MD5"):
        store.read("there")
    assert s3.seen()["counts"]["requests"] == 4


@pytest.mark.parametrize(("retry_after", "refusals"), [("1", 2), ("date", 1)])
def test_store_retries_when_a_busy_server_says(s3: S3, retry_after: str, refusals: int) -> None:
    """Requests to a busy store are retried after each Retry-After delay."""
    store = s3.store("in")
    content = {f"{n}": secrets.token_bytes(500) for n in range(6)}
    s3.faults(seed=1, busy_first=refusals, retry_after=retry_after)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: store.write(name, content[name]), content))
        assert dict(zip(content, pool.map(store.read, content), strict=True)) == content
    assert {e.path for e in store.entries()} == set(content)
    counts = s3.seen()["counts"]
    assert counts["busy_first"] >= refusals * 2 * len(content)
    assert "early" not in counts


def test_store_range_is_complete_or_an_error(any_url: str) -> None:
    store = Store(any_url)
    store.write("a", b"0123456789")
    assert store.read_range("a", 3, 4) == b"3456"
    assert store.read_range("a", 3, 7) == b"3456789"
    assert store.read_range("a", 3, 0) == b""
    for start, length in ((3, 8), (10, 1), (99, 5)):
        with pytest.raises(OSError, match=r"a|range"):
            store.read_range("a", start, length)
    with pytest.raises(FileNotFoundError):
        store.read_range("gone", 0, 1)


def test_store_removes_files_of_killed_writers(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = {"a/b.jpg", "a/.tmp", "a/.0123456789abcdef.tmp.jpg", "runs/lease/.0123456789abcdef.tmp"}
    for name in (*names, ".0123456789abcdef.tmp", "a/.fedcba9876543210.tmp"):
        store.write(name, b"1")
    store.sweep(spare="runs/lease")
    assert {e.path for e in store.entries()} == names
