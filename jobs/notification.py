"""The notification of a night: its content, and how it is sent."""

import http.client
import json
import logging
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from imagemill.jobs.night_config import NotifyConfig

log = logging.getLogger("imagemill.nightly")
SEND_SECONDS = {"command": 60, "webhook": 10}
RECORD_KEYS = ("run_id", "doubt", "found", "done_before", "rejects_waiting", "planned", "ok", "rejected")
"""Fields of RunSummary with the meaning that they have in run.json."""


@dataclass
class RunSummary:
    """One run in the notification of a night.

    Each field is a key of a JSON object and an interface for other programs: keys are added, never changed. A field that
    is None is absent, except `day`.
    """

    job: str
    """Name of the job, and the day of a dated job."""
    day: str | None
    """Day of a dated input, YYYY-MM-DD; null for other inputs."""
    output: str
    """Location of the output."""
    exit_code: int
    exit_reason: str
    """How the run ended: done, deadline, a message, or done with a warning after a semicolon."""
    run_id: str | None = None
    """Absent, like all keys below, if the run did not begin."""
    doubt: str | None = None
    """Why the input may be the wrong one; absent without such a warning."""
    found: int | None = None
    """Images of the input."""
    done_before: int | None = None
    """Images that earlier runs processed."""
    rejects_waiting: int | None = None
    """Rejects of earlier runs that this run did not process again."""
    planned: int | None = None
    """Images that this run had to process."""
    ok: int | None = None
    """Rows that this run committed."""
    rejected: int | None = None
    """Rejects that this run committed."""
    seconds: float | None = None
    """Duration of the run."""
    report: str | None = None
    """Location of the report of the run."""
    drift: dict[str, Any] | None = None
    """Distance of the latents from those of the run before: against (run id), distance, chance, alert. See `drift`."""


@dataclass
class NightSummary:
    """The notification of a night: one JSON object. Keys are added, never changed."""

    began: str
    """Local time, such as 2026-03-01T22:30:00."""
    ended: str
    """Local time."""
    exit_code: int
    """Exit code of the night."""
    runs: list[RunSummary]
    """One object for each run, in order."""
    report: str | None = None
    """Location of the page about the night; absent without a page."""

    def content(self) -> dict[str, Any]:
        """Return the JSON object."""
        values = {"began": self.began, "ended": self.ended, "exit_code": self.exit_code}
        values |= {"runs": [run_content(run) for run in self.runs]}
        return values | ({"report": self.report} if self.report else {})


def run_content(run: RunSummary) -> dict[str, Any]:
    """Return the JSON object of one run."""
    values = {key.name: getattr(run, key.name) for key in fields(run)}
    return {name: value for name, value in values.items() if value is not None or name == "day"}


def send_notification(config: NotifyConfig, content: dict[str, Any]) -> None:
    """Send a notification to the command and the webhook; a failure is logged as a warning.

    Args:
        config: where the notification goes.
        content: `NightSummary.content()`.
    """
    text = json.dumps(content, ensure_ascii=False).encode()
    if command := config.command:
        seconds = SEND_SECONDS["command"]
        attempt(f"notify.command ({command[0]})", partial(subprocess.run, command, input=text, check=True, timeout=seconds))
    if config.webhook:
        attempt("notify.webhook", partial(post, config.webhook, text))


def post(url: str, text: bytes) -> None:
    """Post JSON to a URL."""
    request = urllib.request.Request(url, text, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=SEND_SECONDS["webhook"]).close()


def attempt(key: str, send: Callable[[], object]) -> None:
    """Call a function that sends the notification, and log a failure: the work of the night is done."""
    try:
        send()
    except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as e:
        # Only the kind of error is logged: the message may hold a URL or arguments with a secret.
        log.warning("%s: the notification was not sent: %s", key, type(e).__name__)
