"""A run from its config to its run.json: the one place that knows sources and actors together."""

import hashlib
import json
import logging
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from models import checkpoint as checkpoints
from models.tasks import TASKS
from models.tasks.task import Params, Task
from pipeline.account import Account, account
from pipeline.cluster import connected, unseen
from pipeline.committed import SUPERSEDED, part_paths, read_parts
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, Deadline, Interrupted, OutputHeld, RunFailed, StorageError, TooManyRejects
from pipeline.lease import Lease
from pipeline.logs import RunName
from pipeline.pixels import LOSSY
from pipeline.plan import Plan, blocks, make_plan
from pipeline.pool import (
    PATIENCE_SECONDS,
    Pool,
    node_resources,
    nodes_with_room,
    pool_for,
    room_for,
)
from pipeline.progress import Shown
from pipeline.references import keep_references, references_of
from pipeline.report import leave_report
from pipeline.schema import new_run_id, parquet_bytes
from pipeline.sources import Input, forget_indexes, input_of, listing
from pipeline.sources.source import SHARD_CHANGED
from pipeline.storage import STORE_FAILURES, Store, reason
from pipeline.tally import peak_rss_mb

log = logging.getLogger("imagemill.run")
BYTES_PER_PART = 64_000_000
LINEAGE_KEYS = ("task", "model_id", "checkpoint_sha256", "config_sha256", "parameters", "run_id", "fence")
GO_ON = "What was committed stays; run the same command again"
KEPT_VERSIONS = ("imagemill", "ray", "torch", "pyarrow", "pillow", "numpy", "s3fs")


@dataclass(frozen=True)
class Resolved:
    """A config whose names have become things: all that could be wrong before Ray starts has been looked at."""

    config: RunConfig
    task: Task
    params: Params
    card: checkpoints.Card
    weights: bytes
    references: list[tuple[str, bytes]]
    """sha256 and content of the files that the parameters name."""
    source: Input
    output: Store

    @property
    def parameters(self) -> dict[str, Any]:
        """What changes pixels or codes, beside the checkpoint."""
        values = {**self.params.model_dump(), "task": self.task.name, "reconstruct": self.config.reconstruct}
        # Only what was asked for: outputs that were there before there was a choice keep their versions.
        if asked := self.config.image.model_dump(exclude_defaults=True):
            values["image"] = asked
        # What is in a file counts, not where it lies.
        return values | ({key: [sha256 for sha256, _ in self.references]} if (key := self.task.reference_param) else {})


def resolve(config: RunConfig) -> Resolved:
    """Raises: ConfigError, CheckpointError, StorageError; each names what is wrong and what would be right."""
    if config.task not in TASKS:
        raise ConfigError(f"task = {config.task!r}; valid: {', '.join(TASKS)}")
    task = TASKS[config.task]
    for key in ("input", "output"):
        if not getattr(config, key):
            raise ConfigError(f"{key} is missing: a folder or s3://bucket/prefix")
    try:
        params = task.Params(**config.params)
    except ValidationError as e:
        error = e.errors()[0]
        where = f"params.{'.'.join(map(str, error['loc']))} = {error['input']!r}" if error["loc"] else "params"
        raise ConfigError(
            f"{where}: {error['msg']}; {task.name} takes {', '.join(task.Params.model_fields) or 'none'}"
        ) from None
    check_image(config, task)
    name = config.checkpoint or task.default_checkpoint
    options = config.storage.options() if name.startswith("s3://") else None
    card, weights = checkpoints.read(name, options)
    if card.task != task.name:
        raise ConfigError(f"checkpoint {name} is for the task {card.task}, not {task.name}")
    task.check(checkpoints.build(card, weights), params)
    if name == "random":
        log.warning("checkpoint random: its features were never trained; pictures are poor, a trained network's are better")
    output = Store(str(config.output), config.storage)
    try:
        source = input_of(str(config.input), config.storage, config.source)
    except STORE_FAILURES as e:
        raise StorageError(f"input {config.input}: {reason(e)}") from None
    for inner, outer in ((source.store, output), (output, source.store)):
        if not source.file and inner.scheme == outer.scheme and f"{inner.root}/".startswith(f"{outer.root}/"):
            raise ConfigError(f"input {source.url} and output {output.url} lie one in the other")
    return Resolved(config, task, params, card, weights, references_of(config, task, params), source, output)


def check_image(config: RunConfig, task: Task) -> None:
    """Raises: ConfigError when the outputs of a task cannot be as the group `image` asks."""
    asked = config.image.format
    if task.exact and asked and asked.upper() in LOSSY:
        raise ConfigError(f"image.format = {asked!r}: {task.name} keeps pixels to the last bit; valid: png, tiff")
    beside = config.image.model_dump(exclude_defaults=True).keys() - {"alpha"}
    if task.stores_latent and beside:
        raise ConfigError(
            f"image.{', image.'.join(sorted(beside))}: {task.name} writes latents, which hold sRGB and nothing beside it, "
            "and decodes them to PNG; image.alpha is what can be chosen"
        )


@contextmanager
def storage_errors(job: Resolved) -> Iterator[None]:
    """What a store's client raises becomes a StorageError that names both ends."""
    try:
        yield
    except STORE_FAILURES as e:
        raise StorageError(f"{job.source.url} or {job.output.url}: {reason(e)}") from None


def check_ends(job: Resolved) -> None:
    """Raises: ConfigError when OUTPUT belongs to another task."""
    with storage_errors(job):
        for path in part_paths(job.output, "results")[:1]:
            there = read_parts(job.output, [path], ["task"])["task"][0].as_py()
            if there != job.task.name:
                raise ConfigError(f"output {job.output.url} belongs to the task {there}, not {job.task.name}")


def plan_of(job: Resolved, keep: bool = False) -> Plan:
    """What a run would do; changes nothing unless it is to keep what shards were found to hold. Raises: StorageError."""
    config = job.config
    with storage_errors(job):
        listed = listing(job.source, job.output, masks=job.task.wants_mask(job.params), keep=keep)
        return make_plan(
            listed, job.source.store, job.output, job.card.sha256, job.parameters, retry=config.retry, limit=config.limit
        )


def config_text(job: Resolved) -> str:
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


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(time.monotonic() - began, 3)


def run(config: RunConfig, record: dict[str, Any] | None = None, run_id: str | None = None) -> dict[str, Any]:
    """Do what is to do, and leave run.json and report.html; gives the content of the first, and the path of the second.

    Args:
        record: what is filled in, for who wants to know how far a run came that failed.
        run_id: what the run is called; a new name when absent.

    Raises: ConfigError, CheckpointError, StorageError before Ray starts; OutputHeld; TooManyRejects and VerificationError
    at the end, when all rows are committed.
    """
    job = resolve(config)
    check_ends(job)
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
        record["fence"] = lease.fence
        job.output.write(f"runs/{run_id}/config.yaml", text.encode())
        began = time.monotonic()
        plan = None
        try:
            with stage(seconds, "plan"):
                plan = plan_of(job, keep=True)
            record |= {"found": plan.found, "ignored": plan.ignored, "done_before": plan.done}
            record |= {"rejects_waiting": plan.rejects_waiting, "planned": len(plan.todo)}
            if len(plan.redone):
                fences = pa.array([lease.fence] * len(plan.redone), pa.int64())
                superseded = parquet_bytes(plan.redone.append_column("fence", fences), 9)
                job.output.write(f"runs/{run_id}/{SUPERSEDED}", superseded, durable=True)
            if len(plan.todo):
                execute(job, plan, lease, record, seconds)
            with stage(seconds, "account"):
                left = account(job.output, plan, [c for c, kind in job.task.columns.items() if kind is float])
            record_account(record, left, job.task)
            if SHARD_CHANGED in left.reasons:
                # An overwritten shard has another etag; with the same one it was read wrong when it was listed.
                forget_indexes(job.output)
            share = left.rejected / max(1, len(plan.todo))
            if share > config.max_reject_fraction:
                raise TooManyRejects(
                    f"{left.rejected} of {len(plan.todo)} images were rejected, more than max_reject_fraction = "
                    f"{config.max_reject_fraction:g}; see: imagemill failures {job.output.url}"
                )
            record |= {"exit_reason": "done", "exit_code": 0}
            return record
        except BaseException as e:
            code = getattr(e, "exit_code", 1)
            why = "deadline" if isinstance(e, Deadline) else "interrupted" if isinstance(e, Interrupted) else reason(e)
            record |= {"exit_reason": why, "exit_code": code}
            raise
        finally:
            seconds["total"] = round(time.monotonic() - began, 3)
            record["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            job.output.write(f"runs/{run_id}/run.json", json.dumps(record, indent=2, ensure_ascii=False).encode())
            # After run.json: that one is there however long a page takes.
            record["report"] = leave_report(job.output, record, plan.parts if plan else set(), plan.todo if plan else None)


def record_account(record: dict[str, Any], left: Account, task: Task) -> None:
    counts = asdict(left)
    pixels = counts.pop("pixels")
    record |= counts
    if left.ok and task.stores_latent:
        record["quality"]["bits_per_pixel_on_disk"] = left.parquet_bytes * 8 / pixels


def execute(job: Resolved, plan: Plan, lease: Lease, record: dict[str, Any], seconds: dict[str, float]) -> None:
    """The Ray Data job: references → actors → parts. Raises: OutputHeld, StorageError, RunFailed."""
    began = time.monotonic()
    with connected(job.config.address):
        seconds["start"] = round(time.monotonic() - began, 3)
        check_seen(job, plan, lease)
        part_rows = min(job.config.rows_per_part, max(1, BYTES_PER_PART * len(plan.todo) // max(1, plan.bytes_todo)))
        shown = Shown(job.task.name, record["run_id"], len(plan.todo))
        try:
            with stage(seconds, "run"), shown:
                write_all(job, plan, shown, part_rows, record)
        finally:
            counts = shown.counts
            seconds["first_image"] = round(shown.first_image_s, 3)
            record["images_per_s"] = round(shown.rate(), 2)
            record["peak_rss_mb"] = {
                "driver": peak_rss_mb(),
                "actor": int(counts["rss_mb"]),
                "idle_actor": int(counts["idle_mb"]),
            }
            record["stage_seconds"] = {k[:-2]: round(v, 2) for k, v in sorted(counts.items()) if k.endswith("_s")}
            record |= {"bytes_in": int(counts["bytes_in"]), "bytes_out": int(counts["bytes_out"])}
            record |= {"ok": int(counts["ok"]), "rejected": int(counts["rejected"])}
    if lease.lost.is_set():
        raise OutputHeld(f"{job.output.url}: another run took it while this one was not heard of")


def write_all(job: Resolved, plan: Plan, shown: Shown, part_rows: int, record: dict[str, Any]) -> None:
    """Write what is to do with a pool that suits the cluster, and when it lost nodes, the rest with one that suits it then.

    Raises: ConfigError, RunFailed.
    """
    from ray.exceptions import RayError

    from pipeline.watch import NoRoom, watched

    todo, want, lost = plan.todo, job.config.pool, False
    patience = want.wait_s or PATIENCE_SECONDS
    while True:
        nodes = nodes_with_room(want)
        try:
            pool = pool_for(want, nodes, shrink=lost)
        except ConfigError as e:
            if lost:
                raise RunFailed(f"nodes were lost: {e}. {GO_ON}") from None
            raise
        # An actor without an image would cost a start.
        pool = replace(pool, actors=min(pool.actors, len(todo)))
        record["pool"] = asdict(pool)
        log.info("%d images; %s", len(todo), pool.on(nodes))
        try:
            with watched(pool, shown.done, patience):
                write(job, todo, pool, part_rows, {key: record[key] for key in LINEAGE_KEYS})
            return
        except RayError as e:
            raise translate(e, job) from None
        except NoRoom as e:
            left = todo.filter(pc.invert(pc.is_in(todo["image_id"], written(job.output, plan))))
            if len(left) == len(todo) and (want.wait_s or not room_for(pool, node_resources())):
                raise RunFailed(f"{e}. {GO_ON} when there are nodes") from None
            log.warning("nodes were lost: %s. What is left goes on with what there is", e)
            todo, lost = left, True
            if not len(todo):
                return


def written(output: Store, plan: Plan) -> pa.ChunkedArray:
    """The images whose rows were committed since the plan was made."""
    paths = [part_paths(output, folder) for folder in ("results", "rejects")]
    return read_parts(output, [p for some in paths for p in some if p not in plan.parts], ["image_id"])["image_id"]


def check_seen(job: Resolved, plan: Plan, lease: Lease) -> None:
    """Raises: ConfigError when a node does not see an INPUT or OUTPUT on a disk."""
    first, source, wanted = plan.todo.slice(0, 1).to_pylist()[0], job.source.store, {}
    if job.output.local:
        wanted[job.output.full(lease.claim)] = f"output {job.output.url}"
    if source.local and first["base"] is None:
        wanted[source.full(first["path"])] = f"input {job.source.url}"
    for node, path in unseen(list(wanted)):
        raise ConfigError(
            f"{wanted[path]} is on a disk that the node {node} does not see ({path} is not there): on a cluster INPUT and "
            "OUTPUT are s3:// or on a disk that every node mounts"
        )


def write(job: Resolved, todo: pa.Table, pool: Pool, part_rows: int, lineage: dict[str, Any]) -> None:
    """References to actors, which write parts, on the Ray that is connected."""
    import ray.data
    from ray._private.log import PlainRayHandler

    from pipeline.actor import BLOCKS_AT_ONCE, Actor
    from pipeline.job import Job
    from pipeline.predict import keep_checkpoint
    from pipeline.suspects import MOST_DEATHS

    # Ray Data's progress, plan lines and stack traces give way to one honest bar and one line; its log file has the last.
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray_data = logging.getLogger("ray.data")
    ray_data.setLevel(logging.ERROR)
    for handler in ray_data.handlers:
        if isinstance(handler, PlainRayHandler):
            handler.setLevel(logging.CRITICAL)
    config = job.config
    keep_checkpoint(job.output, job.card, job.weights)
    keep_references(job.output, job.references)
    # Small: a restarted actor gets its arguments again, and large ones could be gone by then (ray#53727).
    work = Job(
        task=job.task.name,
        params=job.params.model_dump(),
        checkpoint_sha256=job.card.sha256,
        references=[sha256 for sha256, _ in job.references],
        source=job.source,
        output=job.output,
        max_pixels=config.max_pixels,
        image=config.image,
        reconstruct=config.reconstruct,
        quality=config.quality,
        compression_level=config.compression_level,
        lineage=lineage,
        batch_size=pool.batch_size,
        threads=pool.threads,
        dtype=config.pool.dtype,
    )
    with warnings.catch_warnings():
        # 2.60 has no named argument for the two limits yet, and warns of the way there is. Actors may restart for ever, but
        # a block that kills them finds out by which image.
        warnings.simplefilter("ignore", ray.data.dataset.RayDeprecationWarning)
        dataset = ray.data.from_blocks(blocks(todo, rows_of_block(len(todo), part_rows, pool))).map_batches(
            Actor,
            fn_constructor_args=[work],
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(
                size=pool.actors,
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
                max_tasks_in_flight_per_actor=BLOCKS_AT_ONCE,
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            max_restarts=-1,
            max_task_retries=MOST_DEATHS,
        )
    dataset.materialize()


def rows_of_block(todo: int, part_rows: int, pool: Pool) -> int:
    """Images of a block, which becomes a part: four blocks for each actor to spread the work, but no less than a batch."""
    share = -(-todo // pool.actors)
    return min(part_rows, max(-(-share // 4), min(pool.batch_size, share)))


def translate(error: BaseException, job: Resolved) -> Exception:
    """What a person can do about an error that Ray brings back: its innermost cause."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    said = (str(error).splitlines() or [""])[0]  # Ray adds lines of its own to what an actor raises
    if isinstance(error, OutputHeld):
        return OutputHeld(said)
    if isinstance(error, StorageError):
        return StorageError(f"{said}. {GO_ON}")
    if isinstance(error, STORE_FAILURES):
        return StorageError(f"{job.output.url}: {reason(error)}. {GO_ON}")
    return RunFailed(f"Ray: {reason(error)}. {GO_ON}")
