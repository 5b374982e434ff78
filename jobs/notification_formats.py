"""The formats of a notification: JSON for programs, a Slack message, plain text for people."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from imagemill.jobs.night_summary import REPORT_OWNER
from imagemill.pipeline.sources.addresses import redact_secrets

RUNS_SHOWN = 20
"""Most runs that a message lists. Slack cuts long messages."""
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
    """Return the summary of a night in lines: the headline, a line for each run with work or a problem, the times.

    Args:
        content: `NightSummary.content()`.
    """
    began, ended = (datetime.fromisoformat(content[key]) for key in ("began", "ended"))
    runs = [run for run in content["runs"] if run["exit_code"] or run.get("planned") or "doubt" in run]
    # Problems come first: they must not be among the runs that are left out.
    runs.sort(key=lambda run: not run["exit_code"])
    lines = [f"imagemill, night of {began:%Y-%m-%d}: {content['headline']}"]
    # A location of a job is in the line of its run, if the problem persists.
    lines += [f"- {problem}" for problem in content.get("problems", ()) if problem.startswith(f"{REPORT_OWNER}: ")]
    lines += [run_line(run) for run in runs[:RUNS_SHOWN]]
    if len(runs) > RUNS_SHOWN:
        lines.append(f"- and {len(runs) - RUNS_SHOWN} more runs")
    lines.append(f"from {began.isoformat(sep=' ')} to {ended.isoformat(sep=' ')}, exit code {content['exit_code']}")
    return lines + ([f"report: {content['report']}"] if "report" in content else [])


def run_line(run: dict[str, Any]) -> str:
    """Return the line of a run: its counts, how it ended, and where to read more."""
    exit_reason = " ".join(redact_secrets(run["exit_reason"]).split())
    if len(exit_reason) > REASON_CHARACTERS:
        exit_reason = exit_reason[:REASON_CHARACTERS] + "…"
    code = f" (exit code {run['exit_code']})" if run["exit_code"] else ""
    counts = f"; {run['ok']:,} of {run['planned']:,} ok, {run['rejected']:,} rejected" if "ok" in run else ""
    return f"- {run['job']}: {exit_reason}{code}{counts}; output {redact_secrets(run['output'])}"


FORMATS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "json": (as_json, "application/json"),
    "slack": (as_slack, "application/json"),
    "text": (as_text, "text/plain; charset=utf-8"),
}
"""Name of a format → its function and its content type."""
