"""Test the notification of a night against a real HTTP server that answers, refuses, redirects or stays silent."""

import json
import threading
from collections.abc import Iterator
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagemill.jobs import notification
from imagemill.jobs.night_config import NightlyConfig
from imagemill.jobs.nightly import show_night
from imagemill.jobs.notification_formats import LINES_SHOWN
from imagemill.pipeline.config import validate
from imagemill.pipeline.errors import ConfigError

SECRET = "T0PSECRET"
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "ok": (200, {}, b"ok"),
    "busy": (503, {"Retry-After": "0"}, b""),
    "gone": (404, {}, b"no_service"),
    "echo": (403, {}, f"no access to /{SECRET}".encode()),
    "moved": (302, {"Location": "/ok"}, b""),
}


class Receiver(ThreadingHTTPServer):
    """An HTTP server whose answers a test chooses by name; the last one is repeated."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = ["ok"]
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.is_closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}?{SECRET}"

    def texts(self) -> list[str]:
        return [body.decode() for _, body in self.received]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((dict(self.headers), body))
        name = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if name == "silent":
            self.server.is_closed.wait()
            return
        if name == "nonsense":
            self.wfile.write(b"hello\r\n")
            return
        code, headers, content = ANSWERS[name]
        self.send_response(code)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Return a server; requests to the server wait little."""
    monkeypatch.setattr(notification, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(notification, "BACKOFF", lambda state: 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HOOK", server.url)
        yield server
        server.is_closed.set()
        server.shutdown()


def night(tmp_path: Path, **notify: Any) -> NightlyConfig:
    """Return the config of a night over one image, which is a reject."""
    if not (tmp_path / "in").exists():
        (tmp_path / "in").mkdir()
        (tmp_path / "in/broken.png").write_bytes(b"broken")
    job = {"name": "<R&D>", "task": "denoise", "input": f"{tmp_path}/in", "output": f"{tmp_path}/out"}
    return NightlyConfig(jobs=[job], report=f"{tmp_path}/nights", notify={"webhook": "${HOOK}", **notify})


def idle_night(tmp_path: Path, **notify: Any) -> NightlyConfig:
    """Return the config of a night without any input."""
    (tmp_path / "in").mkdir(exist_ok=True)
    job = {"task": "denoise", "input": f"{tmp_path}/in/{{date}}", "output": f"{tmp_path}/out/{{date}}"}
    return NightlyConfig(jobs=[job], catch_up=0, notify={"webhook": "${HOOK}", **notify})


def test_notification_formats(receiver, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", SECRET)
    show_night(night(tmp_path, headers={"Authorization": "Bearer ${TOKEN}", "Title": "night"}))
    [(headers, body)] = receiver.received
    assert (headers["Authorization"], headers["Title"]) == (f"Bearer {SECRET}", "night")
    assert headers["Content-Type"] == "application/json"
    content = json.loads(body)
    assert content["version"] == 1
    assert content["headline"] == "done: 0 of 1 image ok, 1 rejected (UnknownFormat 1)"
    assert all(datetime.fromisoformat(content[key]).utcoffset() is not None for key in ("began", "ended"))
    # Neither run.json, the config of the run, the report nor the page of the night holds a secret.
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]

    Image.new("RGB", (32, 32)).save(tmp_path / "in/c.png")
    show_night(night(tmp_path, format="slack"))
    payload = json.loads(receiver.texts()[1])
    headline, line, times, page = payload["text"].splitlines()
    assert (payload.keys(), headline[0] + headline[-1]) == ({"text"}, "**")
    assert headline.endswith("done: 1 of 1 image ok*")
    assert line.startswith("- &lt;R&amp;D&gt;: done; 1 of 1 ok, 0 rejected; output ")
    assert "exit code 0" in times
    assert page.startswith(f"report: {tmp_path}/nights/night-")

    (tmp_path / "file").write_bytes(b"")
    show_night(night(tmp_path, format="text").model_copy(update={"report": f"{tmp_path}/file"}))
    headers, body = receiver.received[2]
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert body.decode().splitlines()[0] == f"imagemill, night of {datetime.now():%Y-%m-%d}: nothing new"
    assert body.decode().splitlines()[1].startswith(f"- the night: report {tmp_path}/file: ")


def test_message_lists_problems_of_jobs_without_a_run(receiver, tmp_path):
    """A dated job without an input today has no other line."""
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_bytes(b"")
    jobs = [
        {
            "name": f"job {n}",
            "task": "denoise",
            "input": f"{tmp_path}/in/{{date}}",
            "output": f"{tmp_path}/file/{n}/{{date}}",
        }
        for n in range(LINES_SHOWN + 1)
    ]
    config = NightlyConfig(jobs=jobs, catch_up=0, notify={"webhook": "${HOOK}", "format": "text"})
    show_night(config, date(2026, 3, 1))
    _, *lines, times = receiver.texts()[0].splitlines()
    place = f"{tmp_path}/file"
    problems = [
        f"- job {n}: output {place}/{n}/2026-03-01: {place} is not a folder. Choose another location"
        for n in range(LINES_SHOWN)
    ]
    assert lines == [*problems, "- and 1 more problem"]
    assert times.endswith("exit code 0")


def test_failed_notification_is_recorded_and_shows_no_secret(receiver, tmp_path, caplog):
    receiver.answers = ["gone"]
    show_night(night(tmp_path))
    failure = (
        f"notify.webhook (127.0.0.1:{receiver.server_port}): the notification was not sent: HTTP 404 Not Found: no_service"
    )
    assert failure in caplog.messages
    record = json.loads(next((tmp_path / "out/runs").glob("*/run.json")).read_text())
    assert (record["exit_code"], record["notification"]) == (0, failure)
    assert failure in (tmp_path / "nights/index.html").read_text()
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("answers", "attempts", "reason"),
    [
        (["busy", "silent", "ok"], 3, None),
        (["busy"], 4, "HTTP 503 Service Unavailable"),
        (["silent"], 4, "no answer within 0.2 s"),
        (["echo"], 1, "HTTP 403 Forbidden"),
        (["moved"], 1, "HTTP 302 Found. Redirects are not followed. Write the new address into notify.webhook"),
        (["nonsense"], 1, "BadStatusLine: the answer is not HTTP"),
    ],
)
def test_webhook_retries_what_may_pass(receiver, tmp_path, caplog, answers, attempts, reason):
    receiver.answers = answers
    show_night(idle_night(tmp_path), date(2026, 2, 1))
    assert len(receiver.received) == attempts
    assert [text.partition("was not sent: ")[2] for text in caplog.messages if "was not sent" in text] == [reason] * bool(
        reason
    )
    assert SECRET not in caplog.text


def test_retry_after_is_honoured_within_limits(monkeypatch, receiver, tmp_path):
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setitem(ANSWERS, "soon", (429, {"Retry-After": "7"}, b""))
    monkeypatch.setitem(ANSWERS, "late", (503, {"Retry-After": "86400"}, b""))
    receiver.answers = ["soon", "late", "ok"]
    show_night(idle_night(tmp_path))
    assert [seconds for seconds in waits if seconds >= 1] == [7, 60]


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        ({"webhook": "${NO_SUCH}"}, "notify.webhook: the environment variable NO_SUCH is not set"),
        ({"webhook": f"hooks/{SECRET}"}, "notify.webhook: must be a URL"),
        ({"webhook": f"https://h/{SECRET} x"}, "notify.webhook: must be a URL"),
        ({"webhook": f"https://me:{SECRET}@h"}, "notify.webhook: must not hold a user"),
        ({"webhook": "https://h", "headers": {"X": f"{SECRET}\n" + "Y: 1"}}, "notify.headers.'X': the name or the value"),
        ({"headers": {"X": SECRET}}, "notify.headers: need notify.webhook"),
        ({"webhook": [SECRET]}, "n: notify.webhook: must be a valid string"),
        ({"webhook": "https://h", "headers": [SECRET]}, "n: notify.headers: must be a valid dictionary"),
        (f"https://h/{SECRET}", "n: notify: must be a valid dictionary"),
        ({"format": "slak"}, "n: notify.format = 'slak': must be 'json', 'slack' or 'text'"),
    ],
)
def test_notify_is_checked_before_the_first_run(notify, message, tmp_path):
    """The message names the key and shows no value that may be a secret."""
    job = {"task": "denoise", "input": f"{tmp_path}/in", "output": f"{tmp_path}/out"}
    with pytest.raises(ConfigError) as failure:
        show_night(validate(NightlyConfig, {"jobs": [job], "notify": notify}, "n"))
    assert str(failure.value).startswith(message)
    assert SECRET not in str(failure.value)
    assert not (tmp_path / "out").exists()
