"""What a night does: its YAML, and its runs over each date."""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from imagemill.pipeline.config import RunConfig, Strict, read_yaml, validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.resolve import task_of

DATE = "{date}"
CLOCK = re.compile("([01]?[0-9]|2[0-3]):[0-5][0-9]")


class Notify(Strict):
    """Who hears of the night's summary, as JSON."""

    command: list[str] | None = Field(None, description="a program and its arguments; the summary is its standard input")
    webhook: str | None = Field(None, description="a URL that the summary is posted to")


class NightlyConfig(Strict):
    """What `imagemill nightly` does."""

    jobs: list[dict[str, Any]] = Field(
        min_length=1,
        description="each the keys of a run, or `config: FILE.yaml` (beside this file) and what differs from it; and a name",
    )
    catch_up: int = Field(7, ge=0, le=366, description="days before tonight whose dated inputs are looked at as well")
    until: str | None = Field(None, pattern=f"^({CLOCK.pattern})$", description="local time, HH:MM, at which the night ends")
    report: str | None = Field(
        None, description="folder or s3://bucket/prefix for a page about each night, reached as the first job's storage says"
    )
    notify: Notify = Notify()
    drift_alert: float | None = Field(
        None,
        gt=0,
        description="say so when latents of a run are farther than this from those of the run before (imagemill stats)",
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
            name = task_of(planned.config)[0].name
        except ConfigError as e:
            raise ConfigError(f"{planned.name}: {e}") from None
        if tasks.setdefault(output, name) != name:
            raise ConfigError(f"{planned.name}: output {output} is that of a job with the task {tasks[output]}, not {name}")
