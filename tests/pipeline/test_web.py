"""Images from URLs: complete or rejected, public hosts only, no secrets in messages."""

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.jobs.failures import show_failures
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.pauses import Refusals, host_of, quiet_seconds, retry_after
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.host_queue import HostBusy
from imagemill.pipeline.sources.image_reader import ImageReader, ReadError
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.sources.resolver import AddressRefused
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.sources.web import fetch, request
from imagemill.pipeline.storage import Store
from tests.support.worker_jobs import job_here, processor_here

BODY = b"x" * 1000


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/ftp":
            self.send_response(302)
            self.send_header("Location", f"ftp://127.0.0.1:{self.server.ftp_port}/x")
            self.end_headers()
            return
        if path == "/endless":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
            return
        if path == "/drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
        if path.startswith("/busy"):
            self.server.requests[path].append(time.monotonic())
            if path == "/busy-always" or len(self.server.requests[path]) <= 2:
                status, headers = self.server.refusal
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(403 if path == "/closed" else 200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:100] if path == "/cut" else BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.requests = defaultdict(list)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def site(server: ThreadingHTTPServer) -> Iterator[tuple[str, socket.socket]]:
    """Start a web server, and a socket that its redirects to ftp lead to."""
    with socket.create_server(("127.0.0.1", 0)) as inner:
        server.ftp_port = inner.getsockname()[1]
        yield f"http://127.0.0.1:{server.server_port}", inner


def test_web_body_is_complete_or_an_error(site):
    url, _ = site
    assert fetch(f"{url}/whole", 1000, public_only=False) == BODY
    with pytest.raises(OSError, match="cut off, 900 bytes are missing"):
        fetch(f"{url}/cut", 1000, public_only=False)
    with pytest.raises(OSError, match="more than"):
        fetch(f"{url}/whole", 999, public_only=False)


@pytest.mark.parametrize("public_only", [False, True])
def test_web_slow_header_times_out(site, monkeypatch, public_only):
    url, _ = site
    monkeypatch.setattr("imagemill.pipeline.sources.web.RESPONSE_SECONDS", 0.1)
    monkeypatch.setattr("imagemill.pipeline.sources.web.connect", lambda *args, public_only: socket.create_connection(*args))
    with pytest.raises(TimeoutError, match=r"/drip: (the response is not complete after|timed out)"):
        fetch(f"{url}/drip", 1000, public_only)


DATES = {"Date": "Fri, 01 Jan 1999 00:00:00 GMT", "Retry-After": "Fri, 01 Jan 1999 00:00:01 GMT"}


@pytest.mark.parametrize(("status", "headers"), [(503, {"Retry-After": "1"}), (429, DATES), (429, {}), (503, {})])
def test_web_busy_site_is_retried_when_it_says(server, status: int, headers: dict[str, str], monkeypatch) -> None:
    """A Retry-After date is relative to the server's clock, which may be years off."""
    monkeypatch.setattr("imagemill.pipeline.pauses.FIRST_SECONDS", 0.1)
    server.refusal = status, headers
    assert fetch(f"http://127.0.0.1:{server.server_port}/busy", 1000, public_only=False) == BODY
    first, second, third = server.requests["/busy"]
    if headers:
        assert second - first >= 1
        assert third - second >= 1


def test_web_busy_site_pauses_all_readers(server) -> None:
    server.refusal = 429, {"Retry-After": "1"}
    url = f"http://127.0.0.1:{server.server_port}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, f"{url}/busy", 1000, False)
        while not server.requests["/busy"]:
            time.sleep(0.01)
        while not quiet_seconds(url.removeprefix("http://")):
            time.sleep(0.01)
        second = pool.submit(fetch, f"{url}/busy-too", 1000, False)
        assert first.result() == second.result() == BODY
    assert server.requests["/busy-too"][0] - server.requests["/busy"][0] >= 1


def test_web_site_that_stays_busy_is_given_up(server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site may ask for any wait, so the run gives up and the next run tries again."""
    monkeypatch.setattr("imagemill.pipeline.pauses.PAUSE_SECONDS", 0.2)
    monkeypatch.setattr("imagemill.pipeline.pauses.PATIENCE_SECONDS", 0.5)
    server.refusal = 503, {"Retry-After": "86400"}
    url = f"http://127.0.0.1:{server.server_port}"
    for most_requests in (5, 6, 7):
        with pytest.raises(OSError, match="/busy-always: 503 Service Unavailable"):
            fetch(f"{url}/busy-always", 1000, public_only=False)
        # After the run has given up on a site, each image costs one request.
        assert 2 <= len(server.requests["/busy-always"]) <= most_requests
    request_count = len(server.requests["/busy-always"])
    assert fetch(f"{url}/whole", 1000, public_only=False) == BODY
    with pytest.raises(OSError, match="503"):
        fetch(f"{url}/busy-always", 1000, public_only=False)
    assert len(server.requests["/busy-always"]) > request_count + 1


def test_web_refused_url_is_given_up_alone(server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience with one URL ends although the site answers all other requests."""
    monkeypatch.setattr("imagemill.pipeline.pauses.PATIENCE_SECONDS", 0.2)
    server.refusal = 503, {"Retry-After": "0"}
    url, refusals = f"http://127.0.0.1:{server.server_port}", Refusals()

    def ask_until_final() -> None:
        while refusals.count < 1000:
            assert fetch(f"{url}/whole", 1000, public_only=False) == BODY
            with suppress(HostBusy):
                request(f"{url}/busy-always", 1000, False, refusals)

    with pytest.raises(OSError, match="/busy-always: 503"):
        ask_until_final()
    assert refusals.count > 1


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a/x", "a:80"),
        ("HTTP://A:80/y", "a:80"),
        ("https://a/x", "a:443"),
        ("http://[::1]:8080/x", "::1:8080"),
        ("http:///x", ""),
        ("http://a:b/x", ""),
    ],
)
def test_web_host_of_url(url: str, host: str) -> None:
    """Limits count requests to one host and port, however the URL writes them."""
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), (" 7 ", 7.0), ("0", 0.0), ("-5", None), ("soon", None), ("", None), ("1e9", None), ("²", None)],
)
def test_web_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": header}) == seconds


@given(wait=st.integers(-100_000, 100_000), skew=st.integers(-(10**8), 10**8))
def test_web_retry_after_as_date(wait: int, skew: int) -> None:
    server_time = time.time() + skew
    headers = {"Date": formatdate(server_time, usegmt=True), "Retry-After": formatdate(server_time + wait, usegmt=True)}
    assert abs((retry_after(headers) or 0.0) - max(0, wait)) <= 1


def test_web_redirect_body_is_not_read(site, monkeypatch):
    url, _ = site
    monkeypatch.setattr("imagemill.pipeline.sources.web.RESPONSE_SECONDS", 2.0)
    assert fetch(f"{url}/endless", 1000, public_only=False) == BODY


def test_web_url_may_hold_any_characters(site):
    url, _ = site
    assert fetch(f"{url}/ä b%20c.jpg?x=ü", 1000, public_only=False) == BODY


def test_web_permanent_errors_are_not_retried(site, tmp_path, monkeypatch):
    url, _ = site
    monkeypatch.setattr("imagemill.pipeline.sources.image_reader.MAX_FILE_BYTES", 999)
    reading = ImageReader(Input(Store(str(tmp_path)), None, SourceConfig(http="any")), 1)
    for path, error_class in ((f"{url}/whole", "TooManyBytes"), ("http://127.0.0.1:port/", "NoAddress")):
        with pytest.raises(ReadError) as error_info:
            reading.image({"base": "", "path": path, "size": -1, "offset": None})
        assert (error_info.value.error_class, error_info.value.transient) == (error_class, False)


def test_web_redirect_to_ftp_is_refused(site):
    url, inner = site
    inner.settimeout(0)
    with pytest.raises(OSError, match="ftp"):
        fetch(f"{url}/ftp", 1000, public_only=False)
    with pytest.raises(BlockingIOError):
        inner.accept()


def test_web_private_addresses_are_refused(site):
    url, _ = site
    for target_url in (url, "http://localhost:1/"):
        with pytest.raises(AddressRefused, match="not a public address"):
            fetch(target_url, 100, public_only=True)


def test_web_error_hides_the_signature(site):
    url, _ = site
    with pytest.raises(OSError, match="403") as error_info:
        fetch(f"{url}/closed?X-Amz-Signature=hidden&part=1", 1000, public_only=False)
    assert "hidden" not in str(error_info.value)
    assert "part=1" in str(error_info.value)


@pytest.mark.parametrize(
    "address", ["user:hidden@127.0.0.1/a.jpg", "user:p@hidden@127.0.0.1/", "127.0.0.1/a b?token=hidden"]
)
def test_web_invalid_url_hides_its_secrets(address):
    with pytest.raises(OSError, match=r"127\.0\.0\.1") as error_info:
        fetch(f"http://{address}", 1000, public_only=False)
    assert "hidden" not in str(error_info.value)


def test_web_duplicate_url_hides_its_signature(tmp_path, caplog, capsys):
    address = "https://h/a?sig=sesame"
    (tmp_path / "list.csv").write_text(f"url\n{address}\n{address}\n")
    config = RunConfig(task="denoise", input=f"{tmp_path}/list.csv", output=f"{tmp_path}/out", max_reject_fraction=1)
    job = resolve(config)
    list(processor_here(job_here(job))(build_plan(job).todo))
    log_records = [vars(record) for record in caplog.records if record.name == "imagemill.finish"]
    record = run(config)
    assert record["reasons"] == {"NotAllowed": 1, "DuplicateName": 1}
    for by_reason in (False, True):
        show_failures(job.output, by_reason)
    out, page = capsys.readouterr().out, job.output.read(record["report"]).decode()
    assert len(log_records) == out.count("DuplicateName") == 2
    assert "DuplicateName" in page
    assert "sesame" not in f"{log_records} {out} {page}"
