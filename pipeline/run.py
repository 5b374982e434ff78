"""A run from its config to its run.json: the one place that knows sources, actor and sink together."""

import hashlib
import json
import logging
import platform
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any

import pyarrow as pa
import yaml
from pydantic import ValidationError

from models import checkpoint as checkpoints
from models.tasks import TASKS
from models.tasks.task import Params, Task
from pipeline.account import Account, account
from pipeline.cluster import connected
from pipeline.committed import SUPERSEDED, part_paths, read_parts
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, Deadline, Interrupted, OutputHeld, RunFailed, StorageError, TooManyRejects
from pipeline.lease import Lease
from pipeline.pixels import LOSSY
from pipeline.plan import Plan, blocks, make_plan
from pipeline.progress import Shown, peak_rss_mb
from pipeline.references import keep_references, references_of
from pipeline.schema import parquet_bytes
from pipeline.sources import Input, forget_indexes, input_of, listing
from pipeline.sources.source import SHARD_CHANGED
from pipeline.storage import STORE_FAILURES, Store, reason

log = logging.getLogger("imagemill.run")
# Actors take three quarters of a CPU each; the rest is for the tasks that write parts. Actors that take all of it
# leave nothing to the writers and Ray Data waits for ever, without a word (ray#44687).
ACTOR_CPUS, WRITER_CPUS = 0.75, 0.25
BYTES_PER_PART = 64_000_000
LINEAGE_KEYS = ("task", "model_id", "checkpoint_sha256", "config_sha256", "parameters", "run_id", "fence")
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


@dataclass(frozen=True)
class Pool:
    """The actors of a run."""

    actors: int
    num_cpus: float
    num_gpus: int
    threads: int
    batch_size: int


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


def pool_for(config: RunConfig, nodes: list[tuple[float, float]]) -> Pool:
    """The actors that suit a cluster of nodes with (CPUs, GPUs).

    Raises: ConfigError when they cannot all run beside a writer.
    """
    want, gpus = config.pool, int(sum(gpu for _, gpu in nodes))
    if gpus:
        # An actor lives on one node: it takes what the poorest GPU node can give each of its GPUs, less what a writer takes.
        share = min((cpu - 2 * WRITER_CPUS) / gpu for cpu, gpu in nodes if gpu)
        num_cpus = share if share < 1 else float(int(share))
        pool = Pool(want.actors or gpus, num_cpus, 1, want.threads or max(2, int(num_cpus)), want.batch_size or 32)
        room = gpus if num_cpus > 0 else 0
    else:
        # Two writers' share is kept free on the whole, and each actor finds its CPU on one node.
        room = sum(int(cpu / ACTOR_CPUS) if cpu >= 2 else int(cpu) for cpu, _ in nodes)
        room = min(room, int((sum(cpu for cpu, _ in nodes) - WRITER_CPUS) / ACTOR_CPUS))
        default = max(1, int(sum(int(cpu) for cpu, _ in nodes)))
        pool = Pool(want.actors or default, ACTOR_CPUS, 0, want.threads or 2, want.batch_size or 8)
    if pool.actors > room:
        raise ConfigError(
            f"pool.actors = {pool.actors}: there is room for {room} beside a writer; each takes {pool.num_cpus:g} CPUs"
            f"{' and a GPU' if gpus else ''} of the nodes' (CPUs, GPUs) {nodes}"
        )
    return pool


def config_text(job: Resolved) -> str:
    """The effective config of a run as YAML; secrets have no place in it."""
    return yaml.safe_dump(job.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(time.monotonic() - began, 3)


def run(config: RunConfig) -> dict[str, Any]:
    """Do what is to do, and leave run.json; gives its content.

    Raises: ConfigError, CheckpointError, StorageError before Ray starts; OutputHeld; TooManyRejects and VerificationError
    at the end, when all rows are committed.
    """
    job = resolve(config)
    check_ends(job)
    seconds: dict[str, float] = {}
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    record: dict[str, Any] = {"run_id": run_id, "task": job.task.name, "model_id": job.card.name}
    text = config_text(job)
    record |= {
        "checkpoint_sha256": job.card.sha256,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "parameters": json.dumps(job.parameters, sort_keys=True),
        "input": job.source.url,
        "output": job.output.url,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "versions": {"python": platform.python_version()} | {name: package_version(name) for name in KEPT_VERSIONS},
    }
    with storage_errors(job), Lease(job.output) as lease:
        record["fence"] = lease.fence
        job.output.write(f"runs/{run_id}/config.yaml", text.encode())
        began = time.monotonic()
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
        pool = pool_for(job.config, node_resources())
        part_rows = min(job.config.rows_per_part, max(1, BYTES_PER_PART * len(plan.todo) // max(1, plan.bytes_todo)))
        log.info("%d images, %d actors", len(plan.todo), pool.actors)
        shown = Shown(record["run_id"], len(plan.todo))
        try:
            with stage(seconds, "run"), shown:
                write(job, plan, pool, part_rows, {k: record[k] for k in LINEAGE_KEYS})
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


def node_resources() -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each node that is alive."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def write(job: Resolved, plan: Plan, pool: Pool, part_rows: int, lineage: dict[str, Any]) -> None:
    """references → actors → parts, on the Ray that is connected."""
    import ray.data
    from ray.exceptions import RayError

    from pipeline.item import Job
    from pipeline.predict import Predictor, keep_checkpoint
    from pipeline.sink import PartSink
    from pipeline.suspects import MOST_DEATHS

    # Ray Data's own progress and plan lines give way to one honest bar.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
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
        compression_level=config.compression_level,
        lineage=lineage,
        batch_size=pool.batch_size,
        threads=pool.threads,
        dtype=config.pool.dtype,
    )
    block_rows = min(part_rows, max(1, len(plan.todo) // (4 * pool.actors)))
    with warnings.catch_warnings():
        # 2.60 has no named argument for the two limits yet, and warns of the way there is. Actors may restart for ever, but
        # a block that kills them finds out by which image.
        warnings.simplefilter("ignore", ray.data.dataset.RayDeprecationWarning)
        dataset = ray.data.from_arrow(blocks(plan.todo, block_rows)).map_batches(
            Predictor,
            fn_constructor_args=[work],
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            max_restarts=-1,
            max_task_retries=MOST_DEATHS,
        )
    sink = PartSink(
        job.output, job.task.columns, job.task.stores_latent, part_rows, config.compression_level, lineage["fence"]
    )
    try:
        dataset.write_datasink(sink, ray_remote_args={"num_cpus": WRITER_CPUS})
    except RayError as e:
        raise translate(e, job) from None


def translate(error: BaseException, job: Resolved) -> Exception:
    """What a person can do about an error that Ray brings back: its innermost cause."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    go_on = "What was committed stays; run the same command again"
    said = (str(error).splitlines() or [""])[0]  # Ray adds lines of its own to what an actor raises
    if isinstance(error, OutputHeld):
        return OutputHeld(said)
    if isinstance(error, StorageError):
        return StorageError(f"{said}. {go_on}")
    if isinstance(error, STORE_FAILURES):
        return StorageError(f"{job.output.url}: {reason(error)}. {go_on}")
    return RunFailed(f"Ray: {reason(error)}. {go_on}")
