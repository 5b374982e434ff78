"""What is to do, done on Ray: the one place that knows plan and actors together."""

import logging
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.cluster.connection import address_of, connected
from imagemill.pipeline.cluster.contact import clean_up, while_answering
from imagemill.pipeline.cluster.nodes import missing_paths
from imagemill.pipeline.cluster.pool import PATIENCE_SECONDS, Pool, node_resources, nodes_with_room, pool_for
from imagemill.pipeline.cluster.progress import RunProgress
from imagemill.pipeline.cluster.tally import DEVICES, ETAGS, forget, peak_rss_mb
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError
from imagemill.pipeline.etags import etags_of
from imagemill.pipeline.output.committed_rows import match_images
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.name_clashes import mark_clashes
from imagemill.pipeline.output.ownership import oldest_unaccounted_file
from imagemill.pipeline.output.parts import SUPERSEDED, list_new_parts, list_parts, read_parts, scan_parts
from imagemill.pipeline.output.snapshot import select_newest_rows
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.output.style_images import store_style_images
from imagemill.pipeline.output.verify import check_file
from imagemill.pipeline.plan import Plan, blocks
from imagemill.pipeline.resolve import ResolvedRun, check_model
from imagemill.pipeline.schema import LINEAGE, parquet_bytes
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.run")
BYTES_PER_PART = 64_000_000
"""Of source files whose images go into one part."""
BATCH_BYTES = 1_000_000
"""Of source files: a block has no more where its images are large and few, but for one batch."""
BEFORE_WRITING = ("list", "fetch", "decode", "model")
"""Stages at which a reject has written nothing."""
LINEAGE_KEYS = [name for name, _ in LINEAGE if name != "encoded_at"]
"""Of a row's lineage what is the whole run's."""
GO_ON = "What was committed stays; run the same command again"


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(time.monotonic() - began, 3)


def execute(job: ResolvedRun, plan: Plan, lease: Lease, record: dict[str, Any], seconds: dict[str, float]) -> None:
    """The Ray Data job: references → actors → parts.

    Raises: CheckpointError, OutputHeld, StorageError, RunFailed; ConfigError where a node does not see INPUT or OUTPUT, or
    no pool fits.
    """
    began = time.monotonic()
    # torch takes its seconds while Ray starts.
    beside = ThreadPoolExecutor(1, thread_name_prefix="check")
    checked = beside.submit(check_model, job)
    beside.shutdown(wait=False)
    with connected(job.config.address):
        checked.result()
        seconds["start"] = round(time.monotonic() - began, 3)
        check_seen(job, plan, lease)
        shown = RunProgress(job.task.name, record["run_id"], len(plan.todo))
        try:
            with stage(seconds, "run"), shown:
                write_all(job, plan, shown, record)
        finally:
            counts = shown.counts
            for place in (name for name in counts if name.startswith(ETAGS)):
                # The log of an actor is where only an operator looks.
                etags_of(place.removeprefix(ETAGS).removesuffix(":")).warn()
            seconds["first_image"] = round(shown.first_image_s, 3)
            record["images_per_s"] = round(shown.rate(), 2)
            record["peak_rss_mb"] = {
                "driver": peak_rss_mb(),
                "actor": int(counts["rss_mb"]),
                "idle_actor": int(counts["idle_mb"]),
            }
            record["stage_seconds"] = {k[:-2]: round(v, 2) for k, v in sorted(counts.items()) if k.endswith("_s")}
            record["devices"] = [device for device in DEVICES if counts[f"on_{device}"]]
            record |= {"bytes_in": int(counts["bytes_in"]), "bytes_out": int(counts["bytes_out"])}
            for told in (f"{record['run_id']}/", f"suspects/{record['run_id']}/"):
                clean_up(partial(forget, told))
    lease.check_held()


def write_all(job: ResolvedRun, plan: Plan, shown: RunProgress, record: dict[str, Any]) -> None:
    """Write what is to do with a pool that suits the cluster, and when it lost nodes, the rest with one that suits it then.

    Raises: ConfigError, OutputHeld, StorageError, RunFailed.
    """
    from ray.exceptions import RayError

    from imagemill.pipeline.cluster.watch import NoRoom, watched

    todo, want, lost = mark_clashes(job.output, plan.todo), job.config.pool, False
    bytes_each = max(1, plan.bytes_todo // len(todo))
    patience = want.wait_s or PATIENCE_SECONDS
    while True:
        nodes = nodes_with_room(want)
        try:
            pool = pool_for(want, nodes, shrink=lost).no_more_than(len(todo))
        except ConfigError as e:
            if lost:
                raise RunFailed(f"nodes were lost: {e}. {GO_ON}") from None
            raise
        if not lost and len(plan.redone):
            supersede(job.output, plan.redone, record)
        record["pool"] = pool.record()
        log.info("%d images; %s", len(todo), pool.on(nodes))
        try:
            with watched(pool, shown.done, patience, address_of(job.config.address) is not None, want.wait_s):
                rows = rows_of_block(len(todo), job.config.rows_per_part, bytes_each, pool)
                # Not of what nodes that were lost have left: that would measure as many once more.
                share = job.config.measured_share(len(plan.todo))
                if job.task.stores_latent:
                    record["measured_share"] = round(share, 4)
                lineage = {key: record[key] for key in LINEAGE_KEYS}
                write(
                    job, todo, rows, pool, share, lineage, oldest_unaccounted_file(job.output, record["run_id"], plan.rows)
                )
            return
        except RayError as e:
            raise translate(e, job) from None
        except NoRoom as e:
            if e.taken:
                raise RunFailed(f"{e}. {GO_ON} when there is room") from None
            left = todo.filter(pc.invert(pc.is_in(todo["image_id"], committed_ids(job.output, plan, "results", "rejects"))))
            if len(left) == len(todo) and (want.wait_s or not any(map(any, node_resources()))):
                raise RunFailed(f"{e}. {GO_ON} when there are nodes") from None
            log.warning("nodes were lost: %s. What is left goes on with what there is", e)
            todo, lost = left, True
            if not len(todo):
                return


def supersede(output: Store, redone: pa.Table, record: dict[str, Any]) -> None:
    """Say which images the run does again, now that nothing is left that could end it before it touches their files."""
    fences = pa.array([record["fence"]] * len(redone), pa.int64())
    marks = parquet_bytes(redone.append_column("fence", fences), 9)
    output.write(f"runs/{record['run_id']}/{SUPERSEDED}", marks, durable=True)


def spare(output: Store, plan: Plan, record: dict[str, Any]) -> None:
    """Take back what `supersede` said of images that were rejected before anything of them was written.

    Their older rows still have their files: who puts a broken file in the place of a good one keeps what the good one gave.
    Not so where a process put the new file and died, and the image was rejected when its block was begun again.
    """
    rejects = read_parts(output, list_new_parts(output, plan.parts, "rejects"), ["image_id", "stage"])
    untouched = rejects.filter(pc.is_in(rejects["stage"], pa.array(BEFORE_WRITING)))["image_id"]
    spared = plan.redone.filter(pc.is_in(plan.redone["image_id"], untouched))["image_id"].combine_chunks()
    if not len(spared):
        return
    tables = scan_parts(output, list_parts(output, "results"), ["image_id", "fence", "output_uri", "output_sha256"])
    rows = select_newest_rows(pa.concat_tables([match_images(table, spared)[0] for table in tables]))
    rows = rows.filter(pc.is_valid(rows["output_uri"]))
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(partial(check_file, output), rows.to_pylist()))
    robbed = rows["image_id"].filter(pa.array([problem is not None for problem in problems], pa.bool_()))
    spared = spared.filter(pc.invert(pc.is_in(spared, robbed)))
    supersede(output, plan.redone.filter(pc.invert(pc.is_in(plan.redone["image_id"], spared))), record)


def committed_ids(output: Store, plan: Plan, *folders: str) -> pa.ChunkedArray:
    """The images whose rows were committed in these folders since the plan was made."""
    paths = [path for folder in folders for path in list_new_parts(output, plan.parts, folder)]
    return read_parts(output, paths, ["image_id"])["image_id"]


def check_seen(job: ResolvedRun, plan: Plan, lease: Lease) -> None:
    """Raises: ConfigError when a node does not see an INPUT or OUTPUT on a disk."""
    source, wanted = job.source.store, {}
    own = plan.todo.filter(pc.and_(pc.is_null(plan.todo["problem"]), pc.is_null(plan.todo["base"])))
    if job.output.local:
        wanted[job.output.full(lease.claim)] = f"output {job.output.url}"
    if source.local and len(own):
        wanted[source.full(own["path"][0].as_py())] = f"input {job.source.url}"
    for node, path in missing_paths(list(wanted)):
        raise ConfigError(
            f"{wanted[path]} is on a disk that the node {node} does not see ({path} is not there): on a cluster INPUT and "
            "OUTPUT are s3:// or on a disk that every node mounts"
        )


def write(
    job: ResolvedRun, todo: pa.Table, rows: int, pool: Pool, share: float, lineage: dict[str, Any], mark: str | None
) -> None:
    """References to actors in blocks of `rows`, which become parts, on the Ray that is connected.

    Args:
        share: of the images whose quality is measured.
        mark: as `WorkerJob.oldest_unaccounted_file`.
    """
    import ray.data
    from ray._private.log import PlainRayHandler

    from imagemill.pipeline.cluster.suspects import MOST_DEATHS
    from imagemill.pipeline.worker import BLOCKS_AT_ONCE, Worker
    from imagemill.pipeline.worker_job import WorkerJob

    # Ray Data's progress, plan lines and stack traces give way to one honest bar and one line; its log file has the last.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Or it wraps what an actor raises, and the wrapping loses it on its way here.
    context.raise_original_map_exception = True
    ray_data = logging.getLogger("ray.data")
    ray_data.setLevel(logging.ERROR)
    for handler in ray_data.handlers:
        if isinstance(handler, PlainRayHandler):
            handler.setLevel(logging.CRITICAL)
    config = job.config
    store_checkpoint(job.output, job.card, job.weights)
    store_style_images(job.output, job.style_images)
    # Small: a restarted actor gets its arguments again, and large ones could be gone by then (ray#53727).
    work = WorkerJob(
        task=job.task.name,
        params=job.params.model_dump(),
        checkpoint_sha256=job.card.sha256,
        style_images=[sha256 for sha256, _ in job.style_images],
        source=job.source,
        output=job.output,
        max_pixels=config.max_pixels,
        image=config.image,
        reconstruct=config.reconstruct,
        quality=share,
        compression_level=config.compression_level,
        lineage=lineage,
        batch_size=pool.batch_size,
        threads=pool.threads,
        gpus=pool.num_gpus,
        torch_threads=pool.torch_threads,
        dtype=config.pool.dtype,
        accept_damaged=config.accept_damaged,
        oldest_unaccounted_file=mark,
    )
    with warnings.catch_warnings():
        # 2.60 has no named argument for the two limits yet, and warns of the way there is. Actors may restart for ever, but
        # a block that kills them finds out by which image.
        warnings.simplefilter("ignore", ray.data.dataset.RayDeprecationWarning)
        dataset = ray.data.from_blocks(blocks(todo, rows)).map_batches(
            Worker,
            fn_constructor_args=[work],
            batch_format="pyarrow",
            # A block is a batch. Ray Data asks for a number where there are GPUs.
            batch_size=rows,
            compute=ray.data.ActorPoolStrategy(
                size=pool.workers,
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
                max_tasks_in_flight_per_actor=BLOCKS_AT_ONCE,
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            max_restarts=-1,
            max_task_retries=MOST_DEATHS,
        )
    while_answering(dataset.materialize)


def rows_of_block(todo: int, most: int, bytes_each: int, pool: Pool) -> int:
    """Images of a block, which becomes a part: four blocks for each actor to spread the work, but no less than a batch.

    Args:
        most: rows of a part.
        bytes_each: of an image's file. Large images are in no batch together, and one actor must not have all of them.
    """
    share = -(-todo // pool.workers)
    batch = min(pool.batch_size, share, max(1, BATCH_BYTES // bytes_each))
    return min(most, max(1, BYTES_PER_PART // bytes_each), max(-(-share // 4), batch))


def translate(error: BaseException, job: ResolvedRun) -> Exception:
    """What a person can do about an error that Ray brings back: its innermost cause."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    if isinstance(error, OSError) and str(error.filename).startswith("Failed to "):
        # Ray Data's words about its own tries, which take a file's name's place.
        error = type(error)(error.errno, error.strerror)
    said = (str(error).splitlines() or [""])[0]  # Ray adds lines of its own to what an actor raises
    if isinstance(error, OutputHeld):
        return OutputHeld(said)
    if isinstance(error, StorageError):
        return StorageError(f"{said}. {GO_ON}")
    if isinstance(error, STORE_FAILURES):
        return StorageError(f"{job.output.url}: {reason(error)}. {GO_ON}")
    return RunFailed(f"Ray: {reason(error)}. {GO_ON}")
