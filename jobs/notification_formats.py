"""The formats of a notification: JSON for programs, a Slack message, plain text for people."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from imagemill.jobs.console import number
from imagemill.pipeline.sources.addresses import redact_secrets

LINES_SHOWN = 20
"""Most problems, and most runs, that a message lists. Slack cuts long messages."""
REASON_CHARACTERS = 300


def as_json(content: dict[str, Any]) -> bytes:
    """Return the summary of a night as one JSON object."""
    return json.dumps(content, ensure_ascii=False).encode()


def as_text(content: dict[str, Any]) -> bytes:
    """Return the summary of a night as lines for people."""
    return ("\n".join(message_lines(content)) + "\n").encode()


def as_slack(content: dict[str, Any]) -> bytes:
    """Return the payload of Slack's incoming webhooks: the lines for people, with the first one in bold."""
    headline, *lines = (escape_mrkdwn(line) for line in message_lines(content))
    return json.dumps({"text": "\n".join([f"*{headline}*", *lines])}, ensure_ascii=False).encode()


def escape_mrkdwn(text: str) -> str:
    """Escape the three characters that control links and mentions in Slack's mrkdwn."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def message_lines(content: dict[str, Any]) -> list[str]:
    """Return the summary of a night in lines: headline, problems with locations, runs with work or a problem, times.

    Args:
        content: `NightSummary.content()`.
    """
    began, ended = (datetime.fromisoformat(content[key]) for key in ("began", "ended"))
    runs = [run for run in content["runs"] if run["exit_code"] or run.get("planned") or "doubt" in run]
    # Problems come first: they must not be among the runs that are left out.
    runs.sort(key=lambda run: not run["exit_code"])
    lines = [f"imagemill, night of {began:%Y-%m-%d}: {content['headline']}"]
    lines += first_lines([shorten(problem) for problem in content.get("problems", ())], "more problem")
    lines += first_lines([run_line(run) for run in runs], "more run")
    lines.append(f"from {began.isoformat(sep=' ')} to {ended.isoformat(sep=' ')}, exit code {content['exit_code']}")
    return lines + ([f"report: {content['report']}"] if "report" in content else [])


def first_lines(lines: list[str], rest: str) -> list[str]:
    """Return the first lines as items of a list. The last item is the number of the others and what they are."""
    shown = [f"- {line}" for line in lines[:LINES_SHOWN]]
    return shown + ([f"- and {number(len(lines) - LINES_SHOWN, rest)}"] if len(lines) > LINES_SHOWN else [])


def shorten(text: str) -> str:
    """Return a text without secrets in one line of at most REASON_CHARACTERS characters."""
    line = " ".join(redact_secrets(text).split())
    return line if len(line) <= REASON_CHARACTERS else line[:REASON_CHARACTERS] + "…"


def run_line(run: dict[str, Any]) -> str:
    """Return the line of a run: its counts, how it ended, and where to read more."""
    code = f" (exit code {run['exit_code']})" if run["exit_code"] else ""
    counts = f"; {run['ok']:,} of {run['planned']:,} ok, {run['rejected']:,} rejected" if "ok" in run else ""
    return f"{run['job']}: {shorten(run['exit_reason'])}{code}{counts}; output {redact_secrets(run['output'])}"


FORMATS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "json": (as_json, "application/json"),
    "slack": (as_slack, "application/json"),
    "text": (as_text, "text/plain; charset=utf-8"),
}
"""Name of a format → its function and its content type."""
