"""Fetches from web servers: many at once, few to each server, none that waits for another server, bounded memory."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.pauses import Refusals
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.sources import resolver
from imagemill.pipeline.sources.byte_budget import ByteBudget
from imagemill.pipeline.sources.host_queue import MOST_REFUSED, HostBusy, HostQueue
from imagemill.pipeline.sources.resolver import AddressRefused, connect
from tests.support.shards import pictures, rows
from tests.support.worker_jobs import job_here, processor_here

FREE_THREADS = 4
"""Threads of the pool that the queue must not use."""


def queue_of(items: list[str], fetch: Callable[[str, Refusals], str], threads: int, per_host: int) -> list[str]:
    """Return the results of a HostQueue; the host of an item is its first character."""
    with ThreadPoolExecutor(threads + FREE_THREADS) as pool:
        return list(HostQueue(items, lambda item: item[0], fetch, pool, threads, per_host, lambda: True))


def refuse(refusals: Refusals) -> None:
    """Raise HostBusy for a moment."""
    refusals.count += 1
    raise HostBusy(0.01)


@given(st.lists(st.sampled_from(["a1", "b1", "c1"]), max_size=12), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30)
def test_host_queue_fetches_all_within_limits(items: list[str], threads: int, per_host: int) -> None:
    running: Counter[str] = Counter()
    lock, peaks = threading.Lock(), Counter[str]()

    def fetch(item: str, refusals: Refusals) -> str:
        with lock:
            running[item[0]] += 1
            peaks[item[0]] = max(peaks[item[0]], running[item[0]])
            peaks["all"] = max(peaks["all"], running.total())
        time.sleep(0.001)
        with lock:
            running[item[0]] -= 1
        if item[0] == "b" and refusals.count < 2:
            refuse(refusals)
        return item

    assert sorted(queue_of(items, fetch, threads, per_host)) == sorted(items)
    assert peaks.pop("all", 0) <= threads
    assert max(peaks.values(), default=0) <= per_host


def test_host_queue_busy_host_delays_no_other() -> None:
    """One thread fetches all images of other hosts while the first host wants to wait."""
    done: list[str] = []

    def fetch(item: str, refusals: Refusals) -> str:
        if item[0] == "a" and len(done) < 3:
            refuse(refusals)
        done.append(item)
        return item

    assert queue_of(["a1", "a2", "b1", "b2", "c1"], fetch, 1, 1)[:3] == ["b1", "c1", "b2"]
    assert sorted(done[3:]) == ["a1", "a2"]


@pytest.mark.parametrize(("threads", "per_host"), [(1, 1), (8, 4)])
def test_host_queue_refused_item_delays_no_other(threads: int, per_host: int) -> None:
    """A URL that its host always refuses waits alone, and the other URLs of the host are fetched meanwhile."""
    done: list[str] = []

    def fetch(item: str, refusals: Refusals) -> str:
        if item == "a0" and len(done) < 99:
            assert refusals.count < 200, f"only {len(done)} of 99 images after {refusals.count} refusals"
            refuse(refusals)
        done.append(item)
        return item

    assert queue_of([f"a{n}" for n in range(100)], fetch, threads, per_host)[-1] == "a0"


def test_host_queue_limits_requests_to_a_busy_host() -> None:
    """A host that refuses each URL at first gets no new request while MOST_REFUSED of its URLs wait."""
    asked, done, waiting = set[str](), list[str](), list[int]()

    def fetch(item: str, refusals: Refusals) -> str:
        asked.add(item)
        waiting.append(len(asked) - len(done))
        if not refusals.count:
            refuse(refusals)
        done.append(item)
        return item

    queue_of([f"a{n}" for n in range(100)], fetch, threads=4, per_host=4)
    assert max(waiting) <= MOST_REFUSED + 4


def test_host_queue_starts_nothing_after_close() -> None:
    """A fetch that is refused after its consumer has stopped is not repeated."""
    started, closed, refused = threading.Event(), threading.Event(), []

    def fetch(item: str, refusals: Refusals) -> str:
        if item == "b1":
            assert started.wait(60)
            return item
        started.set()
        assert closed.wait(60)
        refused.append(item)
        raise HostBusy(0)

    with ThreadPoolExecutor(2) as pool:
        results = iter(HostQueue(["a1", "b1"], lambda item: item[0], fetch, pool, 2, 1, lambda: True))
        assert next(results) == "b1"
        results.close()
        closed.set()
        # Both threads meet twice: a repeated fetch would be in the queue before the second meeting.
        meeting = threading.Barrier(2)
        for _ in range(2):
            list(pool.map(meeting.wait, [60, 60]))
    assert refused == ["a1"]


def test_host_queue_raises_errors() -> None:
    def fail(item: str, refusals: Refusals) -> str:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError, match="a1"):
        queue_of(["a1"], fail, 2, 1)


def test_byte_budget_lets_the_oldest_finish() -> None:
    """A younger fetch waits in its file until the oldest is released; the oldest may exceed the limit."""
    budget, events = ByteBudget(10), []
    with ThreadPoolExecutor(1) as pool, budget.fetch(lambda: None) as oldest:
        oldest(6)
        started = threading.Event()

        def fetch_younger() -> None:
            with budget.fetch(lambda: None) as take:
                take(4)
                started.set()
                take(1)
                events.append("younger")

        younger = pool.submit(fetch_younger)
        assert started.wait(60)
        oldest(100)
        assert not budget.has_room
        events.append("oldest")
        budget.release(106)
        younger.result()
    assert events == ["oldest", "younger"]


def test_byte_budget_forgets_failed_fetches() -> None:
    budget = ByteBudget(10)
    with suppress(OSError), budget.fetch(lambda: None) as take:
        take(10)
        raise OSError("cut off")
    assert budget.has_room


HELD_REQUESTS = 12
"""Requests that wait for others. The report of a run sends further ones, one at a time."""


class Gallery(BaseHTTPRequestHandler):
    """Serves one picture under any path, to `together` requests at once."""

    def do_GET(self) -> None:
        server: Any = self.server
        with server.lock:
            server.asked.append(self.path)
            is_held = server.together and len(server.asked) <= HELD_REQUESTS
            server.now += 1
            server.peak = max(server.peak, server.now)
            busy = self.path == "/busy.png" and server.refusals
            server.refusals -= bool(busy)
        if is_held:
            server.together.wait(60)
        with server.lock:
            server.now -= 1
        self.send_response(429 if busy else 200)
        if busy:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0" if busy else str(len(server.picture)))
        self.end_headers()
        self.wfile.write(b"" if busy else server.picture)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def gallery(picture: bytes, together: int = 0, refusals: int = 0) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gallery) as server:
        state: Any = server
        state.picture, state.refusals, state.asked, state.now, state.peak = picture, refusals, [], 0, 0
        state.lock, state.together = threading.Lock(), threading.Barrier(together) if together else None
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def write_manifest(path: Path, urls: list[str], **config: Any) -> RunConfig:
    path.write_text("\n".join(["url", *urls]))
    config |= {"source": {"http": "any"}}
    return RunConfig(task="denoise", input=str(path), output=str(path.parent / "out"), **config)


@pytest.mark.parametrize(
    # Both engines pass the same job to the same worker, and the worker takes its limits from the job.
    "engine",
    ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])],
    indirect=True,
)
def test_run_fetches_many_urls_at_once(tmp_path: Path, crops: Any, engine: str) -> None:
    """The server answers only when six requests have arrived, and never sees more, on both engines."""
    with gallery(pictures(crops, 1)[0], together=6) as server:
        urls = [f"http://127.0.0.1:{server.server_port}/{n}.png" for n in range(HELD_REQUESTS)]
        pool = {"workers": 1, "fetch_threads": 8, "fetch_per_host": 6, "batch_size": HELD_REQUESTS}
        record = run(write_manifest(tmp_path / "list.csv", urls, pool=pool, engine=engine))
    assert (record["ok"], record["rejected"], record["pool"]["fetch_threads"]) == (12, 0, 8)
    assert server.peak == 6
    assert len(rows(tmp_path / "out")) == 12


def test_worker_fetches_others_while_a_host_waits(tmp_path: Path, crops: Any) -> None:
    """A server that asks to wait for a second is asked again, and the images of the other server come before."""
    picture = pictures(crops, 1)[0]
    with gallery(picture, refusals=1) as slow, gallery(picture) as fast:
        urls = [f"http://127.0.0.1:{slow.server_port}/busy.png", f"http://127.0.0.1:{slow.server_port}/next.png"]
        urls += [f"http://127.0.0.1:{fast.server_port}/{n}.png" for n in range(4)]
        config = write_manifest(tmp_path / "list.csv", urls)
        job = resolve(config)
        table = next(processor_here(job_here(job))(build_plan(job).todo))
    assert table["error"].null_count == len(table) == 6
    assert sorted(slow.asked).count("/busy.png") == 2
    assert len(fast.asked) == 4


def test_worker_bounds_bytes_that_wait_for_decoding(tmp_path: Path, crops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images above the limit are decoded one at a time."""
    monkeypatch.setattr("imagemill.pipeline.block_processor.DECODE_BYTES", 1)
    for number, data in enumerate(pictures(crops, 4)):
        (tmp_path / f"{number}.png").write_bytes(data)
    resolved = resolve(RunConfig(task="denoise", input=str(tmp_path), output=f"{tmp_path}-out"))
    lock, another = threading.Lock(), threading.Event()

    def decode(*args: Any) -> DecodedImage:
        if not lock.acquire(blocking=False):
            another.set()
            raise AssertionError("two images are decoded at once")
        another.wait(0.05)
        lock.release()
        return decode_image(*args)

    monkeypatch.setattr("imagemill.pipeline.block_processor.decode_image", decode)
    (table,) = processor_here(job_here(resolved))(build_plan(resolved).todo)
    assert table["error"].null_count == len(table) == 4


def answers(monkeypatch: pytest.MonkeyPatch, *lookups: list[str]) -> Counter[str]:
    """Let DNS give one answer after the other; record lookups and connections. Connections to 8.8.8.8 fail."""
    resolver._lookups.clear()
    seen, remaining = Counter[str](), list(lookups)

    def look_up(host: str, port: int, type: int = 0) -> list[Any]:
        seen["lookups"] += 1
        ips = remaining.pop(0)
        if not ips:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(0, 0, 0, "", (ip, port)) for ip in ips]

    def create(address: tuple[str, int], *_: Any) -> Any:
        seen[address[0]] += 1
        if address[0] == "8.8.8.8":
            raise OSError("refused")
        return address

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setattr("socket.create_connection", create)
    return seen


def test_resolver_asks_dns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = answers(monkeypatch, ["8.8.8.8", "9.9.9.9"], [])
    for _ in range(3):
        assert connect(("host", 80), public_only=True) == ("9.9.9.9", 80)
    assert seen["lookups"] == 1
    for _ in range(3):
        with pytest.raises(socket.gaierror):
            connect(("unknown", 80), public_only=True)
    assert seen["lookups"] == 2


def test_resolver_forgets_old_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that asks for many hosts does not keep them all."""
    monkeypatch.setattr(resolver, "ANSWER_SECONDS", -1.0)
    hosts = [f"host{n}" for n in range(100)]
    seen = answers(monkeypatch, *[["9.9.9.9"]] * 100)
    for host in hosts:
        connect((host, 80), public_only=True)
    assert seen["lookups"] == 100
    assert len(resolver._lookups) == 1


@pytest.mark.parametrize("later", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1"])
def test_resolver_rebinding_is_refused(later: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to a private address after its first, public one is never connected to."""
    seen = answers(monkeypatch, ["8.8.8.8"], [later], ["9.9.9.9", later])
    with pytest.raises(OSError, match="refused"):
        connect(("host", 80), public_only=True)
    for host in ("host", "other"):
        with pytest.raises(AddressRefused, match="not a public address"):
            connect((host, 80), public_only=True)
    assert dict(seen) == {"lookups": 3, "8.8.8.8": 1}


def test_resolver_checks_remembered_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that one input allowed is refused to another input of the same process."""
    answers(monkeypatch, ["127.0.0.1"])
    assert connect(("host", 80), public_only=False) == ("127.0.0.1", 80)
    with pytest.raises(AddressRefused):
        connect(("host", 80), public_only=True)
