"""The config of a night, and the runs that follow from it."""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from imagemill.pipeline.config import RunConfig, Strict, read_yaml, validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.resolve import resolve_task

DATE = "{date}"
MAX_REJECT_FRACTION, MIN_REJECTS = 0.05, 2
"""Defaults of a night for the keys max_reject_fraction and min_rejects of its jobs.

A night that loses more than this share of its images must not end as done. One reject alone is no alarm, because many
nights have only a few new images.
"""
CLOCK = re.compile("([01]?[0-9]|2[0-3]):[0-5][0-9]")


class NotifyConfig(Strict):
    """Where the notification of a night goes. `night_summary.NightSummary` documents its content."""

    command: list[str] | None = Field(
        None, description="Start this program with these arguments; the notification is its standard input."
    )
    # repr=False: messages about an invalid config do not show the value.
    webhook: str | None = Field(
        None, repr=False, description="Post the notification to this URL. ${NAME} stands for an environment variable."
    )
    headers: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Send these HTTP headers to the webhook. ${NAME} stands for an environment variable.",
    )
    format: Literal["json", "slack", "text"] = Field(
        "json",
        description="Write the notification as JSON, as a message for an incoming webhook of Slack, or as plain text.",
    )


class NightlyConfig(Strict):
    """What `imagemill nightly` does."""

    jobs: list[dict[str, Any]] = Field(
        min_length=1,
        description="Run these jobs in order. Each has the keys of a run and its own `name`. With `config: FILE.yaml` "
        "(relative to this file), a job takes over the keys of that file and overrides them. In a night, "
        f"max_reject_fraction is {MAX_REJECT_FRACTION:g} and min_rejects is {MIN_REJECTS} unless a job sets them.",
    )
    catch_up: int = Field(7, ge=0, le=366, description="Also check the dated inputs of this many days before tonight.")
    until: str | None = Field(None, pattern=f"^({CLOCK.pattern})$", description="End the night at this local time, HH:MM.")
    report: str | None = Field(
        None,
        description="Write a page about each night to this folder or s3://bucket/prefix. The storage block of the first job "
        "applies.",
    )
    notify: NotifyConfig = Field(NotifyConfig(), repr=False)
    drift_alert: float | None = Field(
        None,
        gt=0,
        description="Warn if the latents of a run differ from those of the run before by more than this distance, see "
        "`imagemill stats`.",
    )

    @field_validator("until", mode="before")
    @classmethod
    def pad_hour(cls, value: Any) -> Any:
        """Return 06:30 for 6:30."""
        if value is None:
            return None
        if not isinstance(value, str) or not CLOCK.fullmatch(value):
            raise ValueError("must be a time of day, HH:MM from 00:00 to 23:59")
        return value.zfill(5)


@dataclass(frozen=True)
class NightRun:
    """One run of a night.

    Attributes:
        name: name of the job, and the day of a dated job.
        job: name of the job.
        config: config of the run.
        day: day of a dated input, YYYY-MM-DD; None for other inputs. A dated input may be absent.
        parent: folder or prefix that holds the inputs of all days.
    """

    name: str
    job: str
    config: RunConfig
    day: str | None
    parent: str | None = None


def plan_night(config: NightlyConfig, tonight: date, folder: Path = Path()) -> list[NightRun]:
    """Return the runs of a night: jobs in order, each over its dates, oldest first.

    Args:
        config: config of the night.
        tonight: the newest date.
        folder: what the `config` of a job is relative to.

    Raises:
        ConfigError: if a job cannot run, so that the night stops before its first run.
    """
    dates = [tonight - timedelta(days=ago) for ago in range(config.catch_up, -1, -1)]
    runs = []
    for job in merge_job_configs(config, folder):
        values = {"max_reject_fraction": MAX_REJECT_FRACTION, "min_rejects": MIN_REJECTS} | job
        runs += job_runs(values.pop("name"), values, dates)
    check_tasks(runs)
    return runs


def merge_job_configs(config: NightlyConfig, folder: Path) -> list[dict[str, Any]]:
    """Return each job with its name and with the keys of the file that its key `config` names.

    Raises:
        ConfigError: if two jobs have the same name, or a file cannot be read.
    """
    jobs: list[dict[str, Any]] = []
    for number, job in enumerate(config.jobs):
        name = str(job.get("name", f"job {number + 1}"))
        if any(name == other["name"] for other in jobs):
            raise ConfigError(f"{name}: name={name!r}: another job has this name. Give each job its own name")
        if not isinstance(job.get("config", ""), str):
            raise ConfigError(f"{name}: config={job['config']!r}: must be the name of one file")
        values = (read_yaml(str(folder / job["config"])) if "config" in job else {}) | job | {"name": name}
        jobs.append({key: value for key, value in values.items() if key != "config"})
    return jobs


def job_runs(name: str, values: dict[str, Any], dates: list[date]) -> list[NightRun]:
    """Return the runs of one job: one, or one for each date if its input and output contain {date}.

    Raises:
        ConfigError: if the config is invalid.
    """
    is_dated = DATE in str(values.get("input"))
    if is_dated != (DATE in str(values.get("output"))):
        raise ConfigError(
            f"{name}: {DATE} is in only one of input and output. Write it in both, or the runs of all dates would share one."
        )
    if not is_dated:
        return [NightRun(name, name, validate(RunConfig, values, name), None)]
    for key in ("input", "output"):
        if not isinstance(values[key], str):
            raise ConfigError(f"{name}: {key}={values[key]!r}: must be one folder or s3://bucket/prefix")
    before_date = values["input"].partition(DATE)[0]
    parent = before_date[: before_date.rfind("/") + 1] or "."
    runs = []
    for day in map(str, dates):
        dated = {key: value.replace(DATE, day) if key in ("input", "output") else value for key, value in values.items()}
        runs.append(NightRun(f"{name} {day}", name, validate(RunConfig, dated, name), day, parent))
    return runs


def check_tasks(runs: list[NightRun]) -> None:
    """Check everything about the runs that can be checked without access to any location.

    Raises:
        ConfigError: if a run would be refused later, or two runs with different tasks share an output.
    """
    tasks: dict[str | None, str] = {}
    for run in runs:
        output = run.config.output
        try:
            task = resolve_task(run.config)[0].name
        except ConfigError as e:
            raise ConfigError(f"{run.name}: {e}") from None
        if tasks.setdefault(output, task) != task:
            raise ConfigError(
                f"{run.name}: output {output} belongs to another job with the task {tasks[output]}, not {task}. Give each "
                "task its own output."
            )
