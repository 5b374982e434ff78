"""Run a night: several runs in order until a deadline, a page about them, and a notification."""

import json
import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from imagemill.jobs.console import print_table, print_text
from imagemill.jobs.drift import drift
from imagemill.jobs.night_checks import log_problems
from imagemill.jobs.night_config import NightlyConfig, NightRun, plan_night
from imagemill.jobs.night_page import write_night_page
from imagemill.jobs.night_summary import RECORD_KEYS, NightSummary, RunSummary
from imagemill.jobs.notification import resolve_webhook, send_notification
from imagemill.jobs.stats import moments_of_run
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.cluster.connection import share_ray
from imagemill.pipeline.errors import (
    ConfigError,
    Deadline,
    Failure,
    Interrupted,
    NightFailed,
    RunFailed,
    StorageError,
    join_first,
)
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.run import run
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.signals import LATER_SECONDS, can_raise
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.nightly")
NO_INPUT = "no input for this day"
COUNTS = ("found", "done_before", "rejects_waiting", "planned", "ok", "rejected")


def show_night(config: NightlyConfig, tonight: date | None = None, folder: Path = Path()) -> None:
    """Check all locations, run a night, print its headline and its table, write its page, and send its notification.

    Args:
        config: config of the night.
        tonight: date of the night; today when absent.
        folder: what the `config` of a job is relative to.

    Raises:
        ConfigError: before the first run, if a job cannot run.
        NightFailed: after the night, if a run failed.
        Deadline: after the night, if the deadline stopped it and no run failed.
    """
    began = datetime.now().astimezone()
    runs = plan_night(config, tonight or began.date(), folder)
    webhook = resolve_webhook(config.notify)
    place = Store(config.report, runs[0].config.storage) if config.report else None
    problems = log_problems(runs, config.report)
    with share_ray():
        summaries = run_night(runs, config)
    failed = [summary for summary in summaries if summary.exit_code not in (0, Deadline.exit_code)]
    is_stopped = any(summary.exit_code == Deadline.exit_code for summary in summaries)
    code = Deadline.exit_code if is_stopped else 0
    if failed:
        # Schedulers retry a failed night. After the deadline, a retry would run until the next deadline.
        code = NightFailed.at_deadline if is_stopped else failed[0].exit_code
    ended = datetime.now().astimezone()
    night = NightSummary(began.isoformat(timespec="seconds"), ended.isoformat(timespec="seconds"), code, summaries, problems)
    print_text(night.content()["headline"])
    print_runs(summaries)
    if place:
        night.report = write_night_page(place, night.content())
    if night.report:
        print_text(f"report: {night.report}")
    if failures := send_notification(config.notify, webhook, night.content()):
        record_failures(runs, summaries, failures)
        if place and night.report:
            write_night_page(place, night.content(), failures)
    if failed:
        names = join_first([f"{summary.job} (exit {summary.exit_code})" for summary in failed])
        ending = ". Then the night stopped at its deadline" if is_stopped else ""
        raise NightFailed(f"{len(failed)} of {len(summaries)} runs failed: {names}{ending}", code)
    if is_stopped:
        raise Deadline


def print_runs(summaries: list[RunSummary]) -> None:
    """Print one line for each run of a night."""
    lines = []
    for summary in summaries:
        counts = [getattr(summary, key) for key in COUNTS]
        lines.append([summary.job, *("" if count is None else f"{count:,}" for count in counts), summary.exit_reason])
    print_table(["job", *(key.replace("_", " ") for key in COUNTS), "end"], lines)


def run_night(runs: list[NightRun], config: NightlyConfig) -> list[RunSummary]:
    """Run the runs of a night until its deadline, and return a summary of each. A failed run does not stop the others."""
    summaries = [RunSummary(r.name, r.day, str(r.config.output), Deadline.exit_code, "deadline") for r in runs]
    try:
        with deadline(config.until):
            for night_run, summary in zip(runs, summaries, strict=True):
                log.info("%s", night_run.name)
                run_and_summarise(night_run, summary, config.drift_alert)
    except Deadline:
        log.warning("stopped at the deadline, %s. The next night continues from there.", config.until)
    return summaries


def run_and_summarise(night_run: NightRun, summary: RunSummary, drift_alert: float | None) -> None:
    """Run one run of a night, and fill in its summary.

    Raises:
        Interrupted: after a signal, or at the deadline. The summary says how far the run came.
    """
    record = RunRecord()
    try:
        if night_run.parent and not input_exists(night_run):
            summary.exit_code, summary.exit_reason = 0, NO_INPUT
            return
        content = run(night_run.config, record)
        summary.exit_code, summary.exit_reason = 0, f"done; {record.doubt}" if record.doubt else "done"
        if drift_alert and record.ok and night_run.config.task == "compress":
            output = Store(str(night_run.config.output), night_run.config.storage)
            summary.drift = measure_drift(output, content, drift_alert)
            if summary.drift and summary.drift["alert"]:
                distance = summary.drift["distance"]
                summary.exit_reason = f"done; drift {distance:.2f} from the run before, above drift_alert={drift_alert:g}"
    except Interrupted:
        # The run may have ended already, if the signal arrived while its report was written.
        if record.exit_code is not None and record.exit_reason is not None:
            summary.exit_code, summary.exit_reason = record.exit_code, record.exit_reason
        raise
    except (Failure, CheckpointError) as e:
        log.error("%s: %s", night_run.name, e)
        summary.exit_code, summary.exit_reason = e.exit_code, str(e)
    except Exception as e:  # An unexpected error in one run must not stop the other runs.
        log.exception("%s", night_run.name)
        summary.exit_code, summary.exit_reason = RunFailed.exit_code, reason(e)
    finally:
        for key in RECORD_KEYS:
            setattr(summary, key, getattr(record, key))
        summary.seconds = record.seconds.get("total")
        if record.report:
            summary.report = Store(str(record.output)).uri(record.report)


def record_failures(runs: list[NightRun], summaries: list[RunSummary], failures: list[str]) -> None:
    """Write into the run.json of each run of a night why its notification was not sent."""
    for night_run, summary in zip(runs, summaries, strict=True):
        output, path = Store(summary.output, night_run.config.storage), f"runs/{summary.run_id}/run.json"
        try:
            if summary.run_id and output.exists(path):
                content = json.loads(output.read(path)) | {"notification": "; ".join(failures)}
                output.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())
        except store_failures(ValueError) as e:
            log.warning("%s: run.json does not say that the notification was not sent: %s", output.uri(path), reason(e))


def input_exists(night_run: NightRun) -> bool:
    """Return whether the input of a day exists.

    Raises:
        StorageError: if the folder that holds the inputs of all days does not exist, or cannot be read.
    """
    parent = Store(str(night_run.parent), night_run.config.storage)
    try:
        if Store(str(night_run.config.input), night_run.config.storage).exists():
            return True
        if parent.exists():
            return False
    except store_failures() as e:
        raise StorageError(f"input {night_run.config.input}: {reason(e)}") from None
    raise StorageError(f"input {parent.url}: does not exist. Check `input` of the job {night_run.name}")


def measure_drift(output: Store, record: dict[str, Any], threshold: float) -> dict[str, Any] | None:
    """Compare the latents of a run with those of the run before it with the same model.

    Args:
        output: output of both runs.
        record: content of the run's run.json.
        threshold: distance above which the drift is an alert.

    Returns:
        The value of `drift` in the notification; None if there is no such run, or its rows were replaced since.
    """
    run_id, model = record["run_id"], record["checkpoint_sha256"]
    # Fencing tokens order runs reliably; run ids contain the clock of the machine that made them.
    records = sorted(read_last_records(output), key=lambda r: r.get("fence", 0))
    records = [r for r in records if r.get("ok") and r["checkpoint_sha256"] == model]
    earlier = [r["run_id"] for r in records if r.get("fence", 0) < record["fence"]]
    if not earlier:
        return None
    try:
        result = drift(moments_of_run(output, run_id), moments_of_run(output, earlier[-1]))
    except ConfigError:
        return None  # The run before has no rows left.
    is_alert = result.alarming(threshold)
    if is_alert:
        command = f"imagemill stats {output.url} --run-id {run_id} --against {earlier[-1]}"
        log.warning("%s: drift %.2f from the run before is above %g. See: %s", run_id, result.distance, threshold, command)
    # JSON has no infinity, which `chance` is for two single images.
    chance = round(result.chance, 4) if math.isfinite(result.chance) else None
    return {"against": earlier[-1], "distance": round(result.distance, 4), "chance": chance, "alert": is_alert}


def seconds_until(clock: str, now: datetime) -> float:
    """Return the seconds until local clocks show a time of day, also across a change of daylight saving time.

    Args:
        clock: time of day, HH:MM.
        now: local time without time zone.
    """
    end = datetime.combine(now.date(), time.fromisoformat(clock))
    # The difference of two local times is exact only after each got its offset from UTC.
    return ((end if end > now else end + timedelta(days=1)).astimezone() - now.astimezone()).total_seconds()


@contextmanager
def deadline(clock: str | None) -> Iterator[None]:
    """Raise Deadline in the main thread when local clocks show HH:MM; never if `clock` is None."""

    def raise_deadline(signum: int, frame: FrameType | None) -> None:
        if can_raise(frame):
            raise Deadline
        signal.setitimer(signal.ITIMER_REAL, LATER_SECONDS)

    previous_handler = signal.signal(signal.SIGALRM, raise_deadline)
    if clock:
        seconds = seconds_until(clock, datetime.now())
        log.info("until %s", f"{datetime.now() + timedelta(seconds=seconds):%Y-%m-%d %H:%M}")
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
