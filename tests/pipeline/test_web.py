"""Images behind URLs: whole or not at all, from public places alone, and no secret of an address is told."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from here import job_here

from jobs.failures import show_failures
from pipeline.config import RunConfig
from pipeline.predict import Predictor
from pipeline.resolve import plan_of, resolve
from pipeline.run import run
from pipeline.sources import Input
from pipeline.sources.reading import ReadError, Reading
from pipeline.sources.source import SourceConfig
from pipeline.sources.web import AddressRefused, fetch
from pipeline.storage import Store

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
        self.send_response(403 if path == "/closed" else 200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:100] if path == "/cut" else BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[tuple[str, socket.socket]]:
    """A server, and a socket that its redirects to ftp lead to."""
    with socket.create_server(("127.0.0.1", 0)) as inner, ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.ftp_port = inner.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", inner
        server.shutdown()
        thread.join()


def test_a_body_comes_whole_or_not_at_all(site):
    url, _ = site
    assert fetch(f"{url}/whole", 1000, public_only=False) == BODY
    with pytest.raises(OSError, match="cut off, 900 bytes are missing"):
        fetch(f"{url}/cut", 1000, public_only=False)
    with pytest.raises(OSError, match="more than"):
        fetch(f"{url}/whole", 999, public_only=False)


@pytest.mark.parametrize("public_only", [False, True])
def test_a_head_that_comes_a_byte_at_a_time_has_an_end(site, monkeypatch, public_only):
    url, _ = site
    monkeypatch.setattr("pipeline.sources.web.ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.sources.web.public_connection", socket.create_connection)
    with pytest.raises(TimeoutError, match=r"/drip: (not there after|timed out)"):
        fetch(f"{url}/drip", 1000, public_only)


def test_the_body_of_a_redirect_is_not_waited_for(site, monkeypatch):
    url, _ = site
    monkeypatch.setattr("pipeline.sources.web.ANSWER_SECONDS", 2.0)
    assert fetch(f"{url}/endless", 1000, public_only=False) == BODY


def test_an_address_may_hold_any_letters_and_blanks(site):
    url, _ = site
    assert fetch(f"{url}/ä b%20c.jpg?x=ü", 1000, public_only=False) == BODY


def test_what_will_never_be_given_is_not_asked_for_again(site, tmp_path, monkeypatch):
    url, _ = site
    monkeypatch.setattr("pipeline.sources.reading.MAX_FILE_BYTES", 999)
    reading = Reading(Input(Store(str(tmp_path)), None, SourceConfig(http="any")), 1)
    for path, error_class in ((f"{url}/whole", "TooManyBytes"), ("http://127.0.0.1:port/", "NoAddress")):
        with pytest.raises(ReadError) as refused:
            reading.image({"base": "", "path": path, "size": -1, "offset": None})
        assert (refused.value.error_class, refused.value.transient) == (error_class, False)


def test_no_redirect_leads_to_ftp(site):
    url, inner = site
    inner.settimeout(0)
    with pytest.raises(OSError, match="ftp"):
        fetch(f"{url}/ftp", 1000, public_only=False)
    with pytest.raises(BlockingIOError):
        inner.accept()


def test_no_url_reaches_into_the_network_of_the_workers(site):
    url, _ = site
    for place in (url, "http://localhost:1/"):
        with pytest.raises(AddressRefused, match="no public address"):
            fetch(place, 100, public_only=True)


def test_an_error_does_not_tell_the_signature(site):
    url, _ = site
    with pytest.raises(OSError, match="403") as refused:
        fetch(f"{url}/closed?X-Amz-Signature=hidden&part=1", 1000, public_only=False)
    assert "hidden" not in str(refused.value)
    assert "part=1" in str(refused.value)


@pytest.mark.parametrize(
    "address", ["user:hidden@127.0.0.1/a.jpg", "user:p@hidden@127.0.0.1/", "127.0.0.1/a b?token=hidden"]
)
def test_an_address_that_is_none_does_not_tell_what_it_carries(address):
    with pytest.raises(OSError, match=r"127\.0\.0\.1") as refused:
        fetch(f"http://{address}", 1000, public_only=False)
    assert "hidden" not in str(refused.value)


@pytest.mark.usefixtures("ray_session")
def test_a_signed_address_that_a_manifest_has_twice_is_not_told(tmp_path, caplog, capsys):
    address = "https://h/a?sig=sesame"
    (tmp_path / "list.csv").write_text(f"url\n{address}\n{address}\n")
    config = RunConfig(task="denoise", input=f"{tmp_path}/list.csv", output=f"{tmp_path}/out", max_reject_fraction=1)
    job = resolve(config)
    list(Predictor(job_here(job))(plan_of(job).todo))
    told = [vars(record) for record in caplog.records if record.name == "imagemill.finish"]
    record = run(config)
    assert record["reasons"] == {"NotAllowed": 1, "DuplicateName": 1}
    for by_reason in (False, True):
        show_failures(job.output, by_reason)
    out, page = capsys.readouterr().out, job.output.read(record["report"]).decode()
    assert len(told) == out.count("DuplicateName") == 2
    assert "DuplicateName" in page
    assert "sesame" not in f"{told} {out} {page}"
