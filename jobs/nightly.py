"""A night: several runs in order over what is new, until a deadline, and word of it to whoever asked."""

import http.client
import json
import logging
import math
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import Field, field_validator
from rich.table import Table

from imagemill.jobs.console import console
from imagemill.jobs.drift import drift
from imagemill.jobs.night_page import leave_page
from imagemill.jobs.stats import moments_of_run
from imagemill.models.card import CheckpointError
from imagemill.pipeline.cluster.connection import one_ray
from imagemill.pipeline.config import RunConfig, Strict, read_yaml, validate
from imagemill.pipeline.errors import (
    ConfigError,
    Deadline,
    Failure,
    Interrupted,
    NightFailed,
    RunFailed,
    StorageError,
    first_of,
)
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.resolve import resolve_task
from imagemill.pipeline.run import run
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.signals import LATER_SECONDS, raisable
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.nightly")
DATE = "{date}"
CLOCK = re.compile("([01]?[0-9]|2[0-3]):[0-5][0-9]")
WEBHOOK_SECONDS = 10
NO_INPUT = "no input on that day"
COUNTS = ("found", "done_before", "rejects_waiting", "planned", "ok", "rejected")


class Notify(Strict):
    """Who hears of the night's summary, as JSON."""

    command: list[str] | None = Field(
        None, description="Run this program with these arguments, and write the summary to its standard input."
    )
    webhook: str | None = Field(None, description="Post the summary to this URL.")


class NightlyConfig(Strict):
    """What `imagemill nightly` does."""

    jobs: list[dict[str, Any]] = Field(
        min_length=1,
        description="Do these runs in order. Each has a name and the keys of a run, or `config: FILE.yaml` (relative to "
        "this file) and the keys that differ from that file.",
    )
    catch_up: int = Field(7, ge=0, le=366, description="Also process dated inputs of this many days before tonight.")
    until: str | None = Field(None, pattern=f"^({CLOCK.pattern})$", description="End the night at this local time, HH:MM.")
    report: str | None = Field(
        None,
        description="Write a page about each night to this folder or s3://bucket/prefix, with the storage of the first job.",
    )
    notify: Notify = Notify()
    drift_alert: float | None = Field(
        None,
        gt=0,
        description="Mention in the summary if latents differ from the run before by more than this (see imagemill stats).",
    )

    @field_validator("until", mode="before")
    @classmethod
    def as_clock(cls, value: Any) -> Any:
        """06:30 also where it is written 6:30."""
        if value is None:
            return None
        if not isinstance(value, str) or not CLOCK.fullmatch(value):
            raise ValueError("a time of day is expected, HH:MM from 00:00 to 23:59")
        return value.zfill(5)


@dataclass(frozen=True)
class Planned:
    """One run of a night."""

    name: str
    config: RunConfig
    day: str | None
    """Of whose input it is alone, on which nothing may have come."""
    days: str | None = None
    """The folder or prefix that the inputs of all days lie in."""


def runs_of(config: NightlyConfig, tonight: date, folder: Path = Path()) -> list[Planned]:
    """The runs of a night: jobs in order, each over its dates, oldest first.

    Args: folder: what a job's `config` is relative to.

    Raises: ConfigError for a job that cannot run, before the first one starts.
    """
    runs = []
    for number, job in enumerate(config.jobs):
        name = str(job.get("name", f"job {number + 1}"))
        if not isinstance(job.get("config", ""), str):
            raise ConfigError(f"{name}: config = {job['config']!r}: the name of one file is expected")
        values = (read_yaml(str(folder / job["config"])) if "config" in job else {}) | job
        values = {key: value for key, value in values.items() if key not in ("name", "config")}
        dated = DATE in str(values.get("input"))
        if dated != (DATE in str(values.get("output"))):
            raise ConfigError(f"{name}: {DATE} stands in one of input and output: all dates would be taken for one")
        for key in ("input", "output") if dated else ():
            if not isinstance(values[key], str):
                raise ConfigError(f"{name}: {key} = {values[key]!r}: one folder or s3://bucket/prefix is expected")
        if not dated:
            runs.append(Planned(name, validate(RunConfig, values, name), None))
            continue
        before = values["input"].partition(DATE)[0]
        for ago in range(config.catch_up, -1, -1):
            day = f"{tonight - timedelta(days=ago)}"
            filled = {k: v.replace(DATE, day) if k in ("input", "output") else v for k, v in values.items()}
            place = before[: before.rfind("/") + 1] or "."
            runs.append(Planned(f"{name} {day}", validate(RunConfig, filled, name), day, place))
    check_all(runs)
    return runs


def check_all(runs: list[Planned]) -> None:
    """Raises: ConfigError for a job that its run would refuse hours later, as far as no place must be looked at."""
    tasks: dict[str | None, str] = {}
    for planned in runs:
        output = planned.config.output
        try:
            name = resolve_task(planned.config)[0].name
        except ConfigError as e:
            raise ConfigError(f"{planned.name}: {e}") from None
        if tasks.setdefault(output, name) != name:
            raise ConfigError(f"{planned.name}: output {output} is that of a job with the task {tasks[output]}, not {name}")


def seconds_until(clock: str, now: datetime) -> float:
    """Seconds from now, in local time, to the next time that clocks show HH:MM, be they put forward or back until then."""
    end = datetime.combine(now.date(), time.fromisoformat(clock))
    # What lies between two times of one clock is known once each has its offset.
    return ((end if end > now else end + timedelta(days=1)).astimezone() - now.astimezone()).total_seconds()


@contextmanager
def deadline(clock: str | None) -> Iterator[None]:
    """Raises Deadline in the main thread when clocks show HH:MM."""

    def ended(signum: int, frame: FrameType | None) -> None:
        if raisable(frame):
            raise Deadline
        signal.setitimer(signal.ITIMER_REAL, LATER_SECONDS)

    before = signal.signal(signal.SIGALRM, ended)
    if clock:
        left = seconds_until(clock, datetime.now())
        log.info("until %s", f"{datetime.now() + timedelta(seconds=left):%Y-%m-%d %H:%M}")
        signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def done_night(runs: list[Planned], config: NightlyConfig) -> list[dict[str, Any]]:
    """Do the runs of a night, and give a line for each; one that fails does not keep the others from theirs."""
    at_deadline = {"exit_code": Deadline.exit_code, "exit_reason": "deadline"}
    lines = [{"job": r.name, "day": r.day, "output": r.config.output, **at_deadline} for r in runs]
    try:
        with deadline(config.until):
            for planned, line in zip(runs, lines, strict=True):
                log.info("%s", planned.name)
                fill(line, planned, config.drift_alert)
    except Deadline:
        log.warning("it is %s: the night ends here; the next one goes on from there", config.until)
    return lines


def fill(line: dict[str, Any], planned: Planned, drift_alert: float | None) -> None:
    """Do one run: what it was, what it did, and how it ended."""
    record = RunRecord()
    try:
        if planned.days and not came(planned.config, planned.days):
            line |= {"exit_code": 0, "exit_reason": NO_INPUT}
            return
        content = run(planned.config, record)
        line |= {"exit_code": 0, "exit_reason": f"done; {record.doubt}" if record.doubt else "done"}
        if drift_alert and record.ok and planned.config.task == "compress":
            line |= drifted(Store(str(planned.config.output), planned.config.storage), content, drift_alert)
    except Interrupted:
        # It may have been done already, and its page was what was being made.
        content = record.content()
        line |= {key: content[key] for key in ("exit_code", "exit_reason") if key in content}
        raise
    except (Failure, CheckpointError) as e:
        log.error("%s: %s", planned.name, e)
        line |= {"exit_code": e.exit_code, "exit_reason": str(e)}
    except Exception as e:  # what nobody thought of must not cost the other jobs their night
        log.exception("%s", planned.name)
        line |= {"exit_code": RunFailed.exit_code, "exit_reason": reason(e)}
    finally:
        content = record.content()
        line |= {key: content[key] for key in ("run_id", "doubt", *COUNTS) if key in content}
        if "total" in record.seconds:
            line["seconds"] = record.seconds["total"]
        if record.report:
            line["report"] = Store(str(record.output)).uri(record.report)


def drifted(output: Store, record: dict[str, Any], level: float) -> dict[str, Any]:
    """How far the latents of a run are from those of the run before it in one OUTPUT; nothing where there is none."""
    run_id, model = record["run_id"], record["checkpoint_sha256"]
    # By their fences: their names state what the clocks of several machines said.
    runs = sorted(read_last_records(output), key=lambda r: r.get("fence", 0))
    runs = [r for r in runs if r.get("ok") and r["checkpoint_sha256"] == model]
    earlier = [r["run_id"] for r in runs if r.get("fence", 0) < record["fence"]]
    try:
        # Of these two alone: others would have to be read each night.
        far = drift(moments_of_run(output, run_id), moments_of_run(output, earlier[-1])) if earlier else None
    except ConfigError:
        far = None  # its rows were moved away
    if far is None:
        return {}
    alert = far.alarming(level)
    # JSON knows no infinity: with one image on each side chance cannot be told.
    chance = round(far.chance, 4) if math.isfinite(far.chance) else None
    told = {"against": earlier[-1], "distance": round(far.distance, 4), "chance": chance, "alert": alert}
    if not alert:
        return {"drift": told}
    said = f"drift {far.distance:.2f} from the run before, above {level:g}"
    log.warning("%s: %s; see: imagemill stats %s --run %s --against %s", run_id, said, output.url, run_id, earlier[-1])
    return {"drift": told, "exit_reason": f"done; {said}"}


def came(config: RunConfig, days: str) -> bool:
    """Whether the input of a day is there. Raises: StorageError when the place of all days is not, or does not answer."""
    place = Store(days, config.storage)
    try:
        if Store(str(config.input), config.storage).exists():
            return True
        if place.exists():
            return False
    except STORE_FAILURES as e:
        raise StorageError(f"input {config.input}: {reason(e)}") from None
    raise StorageError(f"{place.url} does not exist")


def show_night(config: NightlyConfig, tonight: date | None = None, folder: Path = Path()) -> None:
    """Do a night, print its table, and tell whoever asked.

    Raises: ConfigError before anything starts; NightFailed when a run failed, at the deadline or not; Deadline.
    """
    began = datetime.now()
    runs = runs_of(config, tonight or began.date(), folder)
    place = Store(config.report, runs[0].config.storage) if config.report else None
    with one_ray():
        lines = done_night(runs, config)
    failed = [line for line in lines if line["exit_code"] not in (0, Deadline.exit_code)]
    ended = any(line["exit_code"] == Deadline.exit_code for line in lines)
    code = Deadline.exit_code if ended else 0
    if failed:
        # A scheduler that starts it again after its deadline would have it run until the next one.
        code = NightFailed.at_deadline if ended else failed[0]["exit_code"]
    table = Table("job", "found", "done before", "rejects waiting", "planned", "ok", "rejected", "end", box=None)
    for line in lines:
        table.add_row(line["job"], *(f"{line[key]:,}" if key in line else "" for key in COUNTS), line["exit_reason"])
    console.print(table)
    if not any(line.get("planned") or "doubt" in line for line in lines) and not code:
        console.print("nothing new")
    times = {"began": began.isoformat(timespec="seconds"), "ended": datetime.now().isoformat(timespec="seconds")}
    summary = {**times, "exit_code": code, "runs": lines}
    if place and (page := leave_page(place, summary)):
        console.print(f"report: {page}", soft_wrap=True)
        summary["report"] = page
    tell(config.notify, summary)
    if failed:
        names = first_of([f"{line['job']} (exit {line['exit_code']})" for line in failed])
        then = "; then it stopped at its deadline" if ended else ""
        raise NightFailed(f"{len(failed)} of {len(lines)} runs failed: {names}{then}", code)
    if ended:
        raise Deadline


def tell(notify: Notify, summary: dict[str, Any]) -> None:
    """Hand over the summary; a hook that fails is a warning, the night is done all the same."""
    text = json.dumps(summary, ensure_ascii=False).encode()

    def tried(name: str, hand_over: Callable[[], object]) -> None:
        try:
            hand_over()
        except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as e:
            # Its arguments or URL may hold a secret: what failed is said, not with what.
            log.warning("the notification by %s failed: %s", name, type(e).__name__)

    if command := notify.command:
        tried(f"notify.command ({command[0]})", lambda: subprocess.run(command, input=text, check=True, timeout=60))
    if notify.webhook:
        request = partial(urllib.request.Request, notify.webhook, text, {"Content-Type": "application/json"})
        tried("notify.webhook", lambda: urllib.request.urlopen(request(), timeout=WEBHOOK_SECONDS).close())
