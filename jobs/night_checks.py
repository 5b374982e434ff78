"""Check the locations of a night before its first run: all inputs, all outputs, and the place of its pages."""

import concurrent.futures
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from functools import partial
from pathlib import Path

from imagemill.jobs.console import number, print_table, print_text
from imagemill.jobs.night_config import NightlyConfig, NightRun, plan_night
from imagemill.jobs.notification import resolve_webhook
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.nightly")
CHECKS_AT_ONCE = 16
PROBE = "imagemill-check"
"""Object that checks whether a bucket can be written. It always has the same name: nights that are killed leave only one."""
PROBE_CONTENT = b"imagemill wrote this object to check the bucket. The next night removes it.\n"
"""Distinguishes the object from an object of the user."""
CHECK_SECONDS = 60
"""How long the checks may take. A store that does not answer by then is a problem, and must not delay the first run."""


def show_checks(config: NightlyConfig, tonight: date | None = None, folder: Path = Path()) -> None:
    """Check a night without starting it, and print its runs.

    Args:
        config: config of the night.
        tonight: date of the night; today when absent.
        folder: what the `config` of a job is relative to.

    Raises:
        ConfigError: if a job or the notification cannot work.
        StorageError: if a location cannot be used.
    """
    runs = plan_night(config, tonight or datetime.now().date(), folder)
    resolve_webhook(config.notify)
    print_table(
        ["job", "task", "input", "output"],
        [[run.name, run.config.task, str(run.config.input), str(run.config.output)] for run in runs],
    )
    problems = log_problems(runs, config.report)
    if problems:
        raise StorageError(f"{number(len(problems), 'problem')} with the locations of this night, see above")
    print_text("all locations can be used")


def log_problems(runs: list[NightRun], report: str | None) -> list[str]:
    """Check the locations of a night, log each problem in one line, and return the lines.

    An input in the output of an earlier job may not exist yet, so it is not checked. Of a dated job, the folder of all days
    and the output of tonight are checked.

    Args:
        runs: runs of the night, in order.
        report: location of the pages.
    """
    checks: dict[tuple[str, str, StorageConfig], tuple[list[str], Callable[[Store], str | None]]] = {}

    def add(job: str, key: str, url: str, storage: StorageConfig, check: Callable[[Store], str | None]) -> None:
        jobs, _ = checks.setdefault((key, url, storage), ([], check))
        if job not in jobs:
            jobs.append(job)

    earlier_outputs: list[Store] = []
    # Of a dated job, the last run is that of tonight. No two jobs have the same name.
    tonight = {run.job: run for run in runs}
    for run in tonight.values():
        source, output = (Store(str(url), run.config.storage) for url in (run.config.input, run.config.output))
        if not any(source.lies_in(earlier) for earlier in earlier_outputs):
            add(run.job, "input", run.parent or str(run.config.input), run.config.storage, input_problem)
        add(run.job, "output", str(run.config.output), run.config.storage, output_problem)
        earlier_outputs.append(output)
    if report:
        add("the night", "report", report, runs[0].config.storage, output_problem)
    pool = concurrent.futures.ThreadPoolExecutor(CHECKS_AT_ONCE)
    answers = {}
    for (key, url, storage), (jobs, check) in checks.items():
        store = Store(url, storage)
        if not store.local:
            _ = store.fs  # One client of this thread for all checks, instead of one for each thread of the pool.
        answers[f"{', '.join(jobs)}: {key} {store.url}"] = pool.submit(find_problem, check, store)
    done, _ = concurrent.futures.wait(answers.values(), CHECK_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    no_answer = f"no answer within {CHECK_SECONDS} s"
    found = {place: answer.result() if answer in done else no_answer for place, answer in answers.items()}
    problems = [f"{place}: {problem}" for place, problem in found.items() if problem]
    for problem in problems:
        log.error("%s", problem)
    return problems


def find_problem(check: Callable[[Store], str | None], store: Store) -> str | None:
    """Return why a location cannot be used, also if the check itself fails; None if it can be used."""
    try:
        return check(store)
    except PermissionError as e:
        advice = "Check the permissions of this user" if store.local else "Check the credentials and their rights"
        return f"{e.strerror if store.local and e.strerror else reason(e)}. {advice}"
    except store_failures(StorageError) as e:
        return reason(e)


def input_problem(store: Store) -> str | None:
    """Return why an input does not exist or cannot be read."""
    if not store.exists():
        return (
            "does not exist. Check the path"
            if store.local
            else "does not exist. Check the bucket, the prefix and the endpoint"
        )
    if store.local:
        if not os.access(store.root, os.R_OK | (os.X_OK if os.path.isdir(store.root) else 0)):
            return "cannot be read. Check the permissions of this user"
        return None
    # Credentials that may list a bucket need not be allowed to read its objects.
    bucket, _, prefix = store.root.partition("/")
    request = partial(store.fs.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix and f"{prefix}/", MaxKeys=10)
    objects = store.ask(request).get("Contents", [])
    filled = next((item["Key"] for item in objects if item["Size"]), None)
    if filled:
        # Another program may have removed the object since it was listed.
        with suppress(FileNotFoundError):
            store.read_range(store.relative(f"{bucket}/{filled}"), 0, 1)
    elif prefix and not objects and store.entry("").size:
        store.read_range("", 0, 1)
    return None


def output_problem(store: Store) -> str | None:
    """Return why a location cannot be written. The check writes a file or an object (PROBE) and removes it."""
    if store.local:
        place = next(folder for folder in (Path(store.root), *Path(store.root).parents) if os.path.lexists(folder))
        if not place.is_dir():
            return f"{place} is not a folder. Choose another location"
        # On most file systems, this file has no name, so a killed process leaves nothing.
        with tempfile.TemporaryFile(dir=place):
            return None
    bucket = store.root.partition("/")[0]
    if not Store(f"s3://{bucket}", store.config).exists():
        return f"the bucket {bucket} does not exist. Create it, or check the name and the endpoint"
    with suppress(FileNotFoundError):
        if store.read(PROBE) != PROBE_CONTENT:
            log.warning("%s: not written by imagemill, so writing is not checked. Rename this object", store.uri(PROBE))
            return None
    store.write(PROBE, PROBE_CONTENT)
    store.delete(PROBE)
    return None
