"""A run, from its config to its run.json."""

import hashlib
import json
import logging
import platform
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

import pyarrow.compute as pc
import yaml

from imagemill.models.tasks.task import Task
from imagemill.pipeline.account import Account, account
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.engine import Work
from imagemill.pipeline.engines.selection import select_engine
from imagemill.pipeline.errors import ConfigError, Deadline, Interrupted, OutputHeld, StorageError, TooManyRejects
from imagemill.pipeline.execution import execute
from imagemill.pipeline.logs import RunName
from imagemill.pipeline.output.compact import compact, merge_new_parts
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.obsolete_rejects import input_key, record_obsolete_rejects
from imagemill.pipeline.output.part_replacement import finish_interrupted_merges
from imagemill.pipeline.output.parts import list_new_parts, read_parts
from imagemill.pipeline.output.prefixes import record_prefix
from imagemill.pipeline.output.prune import finish_interrupted_prunes
from imagemill.pipeline.output.run_history import RUN_ID
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.reports.report import import_pages, write_run_report
from imagemill.pipeline.resolve import (
    ResolvedRun,
    build_plan,
    check_output_task,
    describe_unreadable,
    resolve,
    resolve_task,
    storage_errors,
)
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.schema import new_run_id
from imagemill.pipeline.signals import delay_signals
from imagemill.pipeline.sources.shard_index import delete_indexes
from imagemill.pipeline.sources.source import SHARD_CHANGED, UNREADABLE_FOLDER
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.superseded_rows import committed_ids, unmark_untouched
from imagemill.pipeline.user_code import permitted

log = logging.getLogger("imagemill.run")
REASONS_SHOWN = 3
"""Error classes that the message about too many rejects names."""
MOVED_SHOWN = 10
"""Maximum number of former places of images that run.json lists."""
OPTIONAL_PACKAGES = ("diffusers", "spandrel")
"""Packages that define imported networks, recorded where they are installed."""
VERSIONED_PACKAGES = ("imagemill", "ray", "torch", "pyarrow", "pillow", "numpy", "s3fs")


def config_text(resolved: ResolvedRun) -> str:
    """Return the effective config of a run as YAML. A config holds no secrets."""
    return yaml.safe_dump(resolved.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that rows depend on."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = package_version(name)
        except PackageNotFoundError:
            # imagemill is not installed where Ray unpacked it as a working directory.
            versions[name] = "not installed"
    for name in OPTIONAL_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = package_version(name)
    return versions


def check_run_id(output: Store, run_id: str) -> None:
    """Raise ConfigError if `run_id` is malformed or already used in this output."""
    if not RUN_ID.fullmatch(run_id):
        raise ConfigError(f"run_id={run_id!r}: must look like {new_run_id()} (UTC time and hexadecimal digits)")
    if output.exists(f"runs/{run_id}/config.yaml"):
        raise ConfigError(
            f"run_id={run_id!r}: {output.url} already has a run with this id. Choose another id, or omit --run-id"
        )


def run(config: RunConfig, record: RunRecord | None = None, run_id: str | None = None) -> dict[str, Any]:
    """Process the images of the input that the output lacks; write run.json and report.html.

    Args:
        config: what to do.
        record: filled in as the run progresses, so that a caller can inspect a failed run.
        run_id: id of the run; default: a new id.

    Returns:
        The content of run.json, and the path of the report as `report` if it was written.

    Raises:
        ConfigError: when the config, the input or the output is invalid. No image has been processed then.
        CheckpointError: when the checkpoint cannot be used. No image has been processed then.
        StorageError: when the input cannot be read or the output cannot be written. Committed rows stay.
        OutputHeld: when another run holds the output. Committed rows stay.
        RunFailed: when the engine cannot finish. Committed rows stay.
        Interrupted: after a signal. Committed rows stay. If run.json was already written, `record` says how the run ended.
        Deadline: when a night reaches its deadline; otherwise like Interrupted.
        TooManyRejects: when more images were rejected than max_reject_fraction allows. All rows are committed.
        VerificationError: when a planned image has neither a row nor a reject. All other rows are committed.
    """
    # What is wrong with the config alone is reported before any process starts.
    resolve_task(config)
    engine, reason_for_engine = select_engine(config)
    engine.start()
    resolved = resolve(config)
    check_output_task(resolved)
    if run_id:
        check_run_id(resolved.output, run_id)
    RunName.run_id = run_id = run_id or new_run_id()
    text = config_text(resolved)
    record = RunRecord() if record is None else record
    record.engine, record.engine_reason = engine.name, reason_for_engine
    start_record(record, run_id, resolved, text)
    with permitted(resolved.code), storage_errors(resolved), Lease(resolved.output) as lease:
        began = time.monotonic()
        plan = None
        try:
            with storage_errors(resolved):
                resolved.output.write(f"runs/{run_id}/config.yaml", text.encode())
                finish_interrupted_merges(resolved.output)
                finish_interrupted_prunes(resolved.output, lease.check_held)
                with record.timed("plan"):
                    plan = build_plan(resolved, store_indexes=True)
                if plan.new_input:
                    raise ConfigError(plan.new_input)
                lease.raise_above(plan.fencing_token)
                if config.prefix:
                    record_prefix(resolved.output, config.prefix, resolved.source.url)
                key = input_key(resolved.source.url, config.prefix)
                record_obsolete_rejects(resolved.output, key, plan.gone_rejects, plan.hidden_rejects)
                record.fence = lease.fencing_token
                record_plan(record, plan)
                if len(plan.todo):
                    log.info("engine: %s (%s)", engine.name, reason_for_engine)
                    import_pages()
                    execute(engine, Work(resolved, plan, lease, record))
                    if resolved.task.stores_latent:
                        merge_new_parts(
                            resolved.output, plan.parts, config.rows_per_part, config.compression_level, lease.check_held
                        )
                with record.timed("account"):
                    counts = account(resolved.output, plan, quality_columns(resolved.task))
                record_account(record, counts, plan, resolved.task)
                if counts.rejected and len(plan.redone):
                    unmark_untouched(resolved.output, plan, record)
                if SHARD_CHANGED in counts.reasons:
                    # An overwritten shard has a new etag. A shard that changed under the same etag was indexed wrongly.
                    delete_indexes(resolved.output)
                check_rejects(config, counts, plan, resolved.output)
                if config.strict and plan.unreadable_folders:
                    raise StorageError(f"{describe_unreadable(plan, resolved.source)}. With --strict, this is an error")
            record.exit_reason, record.exit_code = "done", 0
        except BaseException as e:
            record_failure(record, e, resolved.output, plan)
            raise
        finally:
            record.seconds["total"] = round(time.monotonic() - began, 3)
            record.ended_at = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                with delay_signals(once=True):
                    write_record(resolved.output, record)
                # The report comes after run.json, which must exist even if drawing the page takes long or is interrupted.
                parts, todo = (plan.parts, plan.todo) if plan else (set(), None)
                record.report = write_run_report(resolved.output, record.content(), parts, todo)
            except Interrupted:
                # If the run failed, its own exception says more than a missing report.
                if not record.exit_code:
                    raise
        # Compaction comes last: to the report, all parts that are not in `plan.parts` are parts of this run.
        if plan and len(plan.todo):
            compact(resolved.output, plan.parts, config.compression_level, lease.check_held)
        return record.content()


def start_record(record: RunRecord, run_id: str, resolved: ResolvedRun, config_yaml: str) -> None:
    """Fill in what identifies a run."""
    record.run_id = run_id
    record.task = resolved.task.name
    record.model_id = resolved.card.name
    record.checkpoint_sha256 = resolved.card.sha256
    record.code_sha256 = resolved.code.sha256 if resolved.code else None
    record.config_sha256 = hashlib.sha256(config_yaml.encode()).hexdigest()
    record.parameters = json.dumps(resolved.parameters, sort_keys=True)
    record.input = resolved.source.url
    record.prefix = resolved.config.prefix
    record.output = resolved.output.url
    record.started_at = datetime.now(UTC).isoformat(timespec="seconds")
    record.versions = package_versions()


def record_plan(record: RunRecord, plan: Plan) -> None:
    """Fill in the counts of the plan."""
    record.found = plan.found
    record.ignored = plan.ignored.total()
    record.ignored_by_kind = dict(plan.ignored.most_common())
    record.done_before = plan.done
    record.rejects_waiting = plan.rejects_waiting
    record.planned = len(plan.todo)
    record.doubt = plan.input_warning
    record.moved_from = dict(plan.moved.most_common(MOVED_SHOWN)) or None


def quality_columns(task: Task) -> list[str]:
    """Return the columns of a task whose means describe the quality of a run."""
    return [name for name, kind in task.columns.items() if kind is float]


def record_account(record: RunRecord, counts: Account, plan: Plan, task: Task) -> None:
    """Fill in the counts of the committed rows."""
    record.ok, record.rejected, record.reasons = counts.ok, counts.rejected, counts.reasons
    record.doubles_dropped = counts.doubles_dropped
    record.parquet_bytes = counts.parquet_bytes
    record.frames_left_out, record.damaged = counts.frames_left_out, counts.damaged
    record.quality = dict(counts.quality)
    record.rows = plan.rows + counts.ok - counts.doubles_dropped
    if counts.ok and task.stores_latent:
        record.quality["bits_per_pixel_on_disk"] = counts.parquet_bytes * 8 / counts.pixels


def check_rejects(config: RunConfig, counts: Account, plan: Plan, output: Store) -> None:
    """Raise TooManyRejects if more images were rejected than max_reject_fraction allows.

    Rejects with a transient cause are tried again by every run. They count among the images of the whole input, so that a
    few of them do not fail each run without new images, but an outage does. Folders do not count as images.
    """
    folders = counts.reasons.get(UNREADABLE_FOLDER, 0)
    rejected = counts.rejected - folders
    new = len(plan.todo) - folders - int(pc.sum(pc.greater(plan.todo["attempts"], 0)).as_py() or 0)
    # With retry_failed, failures are expected, so the limit does not apply.
    if config.retry_failed:
        return
    for count, images in ((rejected - counts.rejected_again, new), (rejected, plan.found - folders)):
        if count >= config.min_rejects and count > config.max_reject_fraction * images:
            reasons = ", ".join(f"{name} {number:,}" for name, number in list(counts.reasons.items())[:REASONS_SHOWN])
            raise TooManyRejects(
                f"{count} of {images} images were rejected ({reasons}), more than max_reject_fraction="
                f"{config.max_reject_fraction:g} allows. List them with: imagemill failures {output.url}"
            )


def record_failure(record: RunRecord, error: BaseException, output: Store, plan: Plan | None) -> None:
    """Fill in how a run failed and, if the output can be read, how many rows and rejects the run committed."""
    record.exit_code = getattr(error, "exit_code", 1)
    record.exit_reason = reason(error)
    if isinstance(error, Interrupted):
        record.exit_reason = "deadline" if isinstance(error, Deadline) else "interrupted"
    # After OutputHeld, the new parts belong to another run. After TooManyRejects, the record already has the final counts.
    if plan and not isinstance(error, TooManyRejects | OutputHeld):
        with suppress(*store_failures(StorageError)):
            ok = len(committed_ids(output, plan, "results"))
            classes = read_parts(output, list_new_parts(output, plan.parts, "rejects"), ["error_class"])["error_class"]
            record.ok, record.rejected = ok, len(classes)
            record.reasons = dict(Counter(classes.to_pylist()).most_common())


def write_record(output: Store, record: RunRecord) -> None:
    """Write run.json. If the run itself failed, only log that run.json cannot be written.

    Raises:
        OSError: or another exception of `store_failures`, when run.json of a successful run cannot be written.
    """
    try:
        output.write(f"runs/{record.run_id}/run.json", record.to_json())
    except store_failures() as e:
        # If the run failed, its own exception says more than a missing run.json.
        if not record.exit_code:
            raise
        log.warning("run.json of %s was not written: %s", record.run_id, reason(e))
