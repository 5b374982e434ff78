"""A run from its config to its run.json."""

import hashlib
import json
import logging
import platform
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

import yaml

from imagemill.models.tasks.task import Task
from imagemill.pipeline.account import Account, account
from imagemill.pipeline.cluster.connection import signals_wait
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.ray_engine import committed_ids, execute, spare, stage
from imagemill.pipeline.errors import ConfigError, Deadline, Interrupted, OutputHeld, StorageError, TooManyRejects
from imagemill.pipeline.logs import RunName
from imagemill.pipeline.output.compact import compact
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.obsolete_rejects import record_obsolete_rejects
from imagemill.pipeline.output.part_replacement import finish_interrupted_merges
from imagemill.pipeline.output.run_history import RUN_ID
from imagemill.pipeline.reports.report import write_run_report
from imagemill.pipeline.resolve import ResolvedRun, check_ends, plan_of, resolve, storage_errors
from imagemill.pipeline.schema import new_run_id
from imagemill.pipeline.sources.shard_index import delete_indexes
from imagemill.pipeline.sources.source import SHARD_CHANGED
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.run")
COMMITTED = {"ok": "results", "rejected": "rejects"}
"""Counts of a run that did not come to its account: of rows that are there, where more images may have been done."""
MOVED_SHOWN = 10
"""Places that images were in before, and what run.json says of them."""
KEPT_VERSIONS = ("imagemill", "ray", "torch", "pyarrow", "pillow", "numpy", "s3fs")


def config_text(job: ResolvedRun) -> str:
    """The effective config of a run as YAML; secrets have no place in it."""
    return yaml.safe_dump(job.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def versions() -> dict[str, str]:
    """Of what makes rows; imagemill itself may be a working directory that Ray unpacked, and installed nowhere."""
    found = {"python": platform.python_version()}
    for name in KEPT_VERSIONS:
        try:
            found[name] = package_version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_free(output: Store, run_id: str) -> None:
    """Raises: ConfigError for a run id that is none, or that a run of OUTPUT had."""
    if not RUN_ID.fullmatch(run_id):
        raise ConfigError(f"run_id = {run_id!r}: as {new_run_id()} is: a time in UTC, and hexadecimal digits")
    if output.exists(f"runs/{run_id}/config.yaml"):
        raise ConfigError(f"run_id = {run_id!r}: {output.url} had a run of that name; without --run-id each gets its own")


def run(config: RunConfig, record: dict[str, Any] | None = None, run_id: str | None = None) -> dict[str, Any]:
    """Do what is to do, and leave run.json and report.html; gives the content of the first, and the path of the second.

    Args:
        record: what is filled in, for who wants to know how far a run came that failed.
        run_id: what the run is called; a new name when absent.

    Raises: ConfigError, CheckpointError, StorageError before an image is touched; OutputHeld; RunFailed, StorageError,
    Interrupted and Deadline on the way, and what was committed stays; TooManyRejects and VerificationError at the end, when
    all rows are committed. Interrupted and Deadline may come after run.json too: `record` says how the run ended.
    """
    job = resolve(config)
    check_ends(job)
    if run_id:
        check_free(job.output, run_id)
    seconds: dict[str, float] = {}
    RunName.run_id = run_id = run_id or new_run_id()
    text = config_text(job)
    record = {} if record is None else record
    record |= {
        "run_id": run_id,
        "task": job.task.name,
        "model_id": job.card.name,
        "checkpoint_sha256": job.card.sha256,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "parameters": json.dumps(job.parameters, sort_keys=True),
        "input": job.source.url,
        "output": job.output.url,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "versions": versions(),
    }
    with storage_errors(job), Lease(job.output) as lease:
        began = time.monotonic()
        plan = None
        try:
            with storage_errors(job):
                job.output.write(f"runs/{run_id}/config.yaml", text.encode())
                finish_interrupted_merges(job.output)
                with stage(seconds, "plan"):
                    plan = plan_of(job, store_indexes=True)
                if plan.new_input:
                    raise ConfigError(plan.new_input)
                lease.raise_above(plan.fence)
                if plan.absent is not None:
                    record_obsolete_rejects(job.output, job.source.url, plan.absent)
                record["fence"] = lease.fence
                record |= {"found": plan.found, "ignored": plan.ignored.total(), "done_before": plan.done}
                record["ignored_by_kind"] = dict(plan.ignored.most_common())
                record |= {"rejects_waiting": plan.rejects_waiting, "planned": len(plan.todo)}
                record |= {"doubt": plan.doubt} if plan.doubt else {}
                record |= {"moved_from": dict(plan.moved.most_common(MOVED_SHOWN))} if plan.moved else {}
                if len(plan.todo):
                    execute(job, plan, lease, record, seconds)
                with stage(seconds, "account"):
                    left = account(job.output, plan, [c for c, kind in job.task.columns.items() if kind is float])
                record_account(record, left, job.task)
                record["rows"] = plan.rows + left.ok - left.doubles_dropped
                if left.rejected and len(plan.redone):
                    spare(job.output, plan, record)
                if SHARD_CHANGED in left.reasons:
                    # An overwritten shard has another etag; with the same one it was read wrong when it was listed.
                    delete_indexes(job.output)
                share = left.rejected / max(1, len(plan.todo))
                # With retry_failed, failures are expected, so the limit does not apply.
                if share > config.max_reject_fraction and not config.retry_failed:
                    raise TooManyRejects(
                        f"{left.rejected} of {len(plan.todo)} images were rejected, more than max_reject_fraction = "
                        f"{config.max_reject_fraction:g}; see: imagemill failures {job.output.url}"
                    )
            record |= {"exit_reason": "done", "exit_code": 0}
        except BaseException as e:
            code = getattr(e, "exit_code", 1)
            why = "deadline" if isinstance(e, Deadline) else "interrupted" if isinstance(e, Interrupted) else reason(e)
            record |= {"exit_reason": why, "exit_code": code}
            # Another run's rows are none of this one's, and of a store that fails nothing is known.
            if plan and not isinstance(e, TooManyRejects | OutputHeld):
                with suppress(StorageError, *STORE_FAILURES):
                    record |= {name: len(committed_ids(job.output, plan, folder)) for name, folder in COMMITTED.items()}
            raise
        finally:
            seconds["total"] = round(time.monotonic() - began, 3)
            record["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                with signals_wait(once=True):
                    write_record(job.output, record)
                # After run.json: that one is there however long a page takes.
                parts, todo = (plan.parts, plan.todo) if plan else (set(), None)
                record["report"] = write_run_report(job.output, record, parts, todo)
            except Interrupted:
                record.setdefault("report", None)
                # How the run ended says more than that its page was left out.
                if not record["exit_code"]:
                    raise
        # Last: the report knows its run's parts by what was not there before.
        if plan and len(plan.todo):
            compact(job.output, plan.parts, config.compression_level, lease.check_held)
        return record


def write_record(output: Store, record: dict[str, Any]) -> None:
    """Leave run.json. Raises: StorageError and the like, where the run itself did not fail."""
    try:
        output.write(f"runs/{record['run_id']}/run.json", json.dumps(record, indent=2, ensure_ascii=False).encode())
    except STORE_FAILURES as e:
        # What ended the run says more than that its record could not be written either.
        if not record["exit_code"]:
            raise
        log.warning("no run.json of %s: %s", record["run_id"], reason(e))


def record_account(record: dict[str, Any], left: Account, task: Task) -> None:
    counts = asdict(left)
    pixels = counts.pop("pixels")
    record |= counts
    if left.ok and task.stores_latent:
        record["quality"]["bits_per_pixel_on_disk"] = left.parquet_bytes * 8 / pixels
