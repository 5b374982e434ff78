"""The summary of a night: what its notification says."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from imagemill.jobs.console import number
from imagemill.pipeline.errors import Deadline

VERSION = 1
"""Version of the JSON object. Keys are added without a new version; a changed or removed key gets a new one."""
REASONS_SHOWN = 3
"""Number of error classes that the headline names."""
RECORD_KEYS = ("run_id", "doubt", "found", "done_before", "rejects_waiting", "planned", "ok", "rejected", "reasons")
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
    reasons: dict[str, int] | None = None
    """Error class → number of rejects, the commonest first."""
    seconds: float | None = None
    """Duration of the run."""
    report: str | None = None
    """Location of the report of the run."""
    drift: dict[str, Any] | None = None
    """Distance of the latents from those of the run before: against (run id), distance, chance, alert. See `drift`."""

    def content(self) -> dict[str, Any]:
        """Return the JSON object."""
        values = {key.name: getattr(self, key.name) for key in fields(self)}
        return {name: value for name, value in values.items() if value is not None or name == "day"}


@dataclass
class NightSummary:
    """The notification of a night: one JSON object. Keys are added, never changed, unless `version` rises."""

    began: str
    """Local time with its offset from UTC, such as 2026-03-01T22:30:00+01:00."""
    ended: str
    """Local time with its offset from UTC."""
    exit_code: int
    """Exit code of the night."""
    runs: list[RunSummary]
    """One object for each run, in order."""
    problems: list[str] = field(default_factory=list)
    """Locations that could not be used before the first run, and why; absent if there are none."""
    report: str | None = None
    """Location of the page about the night; absent without a page."""

    def content(self) -> dict[str, Any]:
        """Return the JSON object."""
        runs = [run.content() for run in self.runs]
        values = {"version": VERSION, "headline": headline(runs), "began": self.began, "ended": self.ended}
        values |= {"exit_code": self.exit_code, "runs": runs}
        return values | {key: value for key in ("problems", "report") if (value := getattr(self, key))}


def ending(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """Return how a night ended in a few words, and its mood: good, warn or bad."""
    failed = sum(run["exit_code"] not in (0, Deadline.exit_code) for run in runs)
    is_stopped = any(run["exit_code"] == Deadline.exit_code for run in runs)
    if failed:
        return f"{failed} of {number(len(runs), 'run')} failed{', stopped at the deadline' if is_stopped else ''}", "bad"
    if is_stopped:
        return "stopped at the deadline", "warn"
    if any("doubt" in run for run in runs):
        return "check the inputs", "warn"
    return ("done" if any(run.get("planned") for run in runs) else "nothing new"), "good"


def headline(runs: list[dict[str, Any]]) -> str:
    """Return the first line of a summary: how the night ended, its images, and the commonest reasons of rejects."""
    planned, ok, rejected = (sum(run.get(key, 0) for run in runs) for key in ("planned", "ok", "rejected"))
    text = ending(runs)[0]
    if planned:
        text += f": {ok:,} of {number(planned, 'image')} ok"
    if rejected:
        reasons = commonest_reasons(runs)
        text += f", {rejected:,} rejected" + (f" ({reasons})" if reasons else "")
    return text


def commonest_reasons(runs: list[dict[str, Any]]) -> str:
    """Return the most frequent error classes of rejects with their numbers: DamagedImage 12, TooManyPixels 3."""
    reasons: Counter[str] = Counter()
    for run in runs:
        reasons.update(run.get("reasons", {}))
    rest = len(reasons) - REASONS_SHOWN
    shown = ", ".join(f"{name} {count:,}" for name, count in reasons.most_common(REASONS_SHOWN))
    return shown + (f", and {rest} more class{'es' if rest > 1 else ''}" if rest > 0 else "")
