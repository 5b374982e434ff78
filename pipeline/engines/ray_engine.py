"""The Ray engine: runs the blocks of a plan on a pool of Ray Data actors, one per worker."""

import logging
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.cluster.connection import address_of, connected
from imagemill.pipeline.cluster.contact import clean_up, while_answering
from imagemill.pipeline.cluster.nodes import missing_paths
from imagemill.pipeline.cluster.pool import PATIENCE_SECONDS, Pool, node_resources, nodes_with_room, pool_for
from imagemill.pipeline.cluster.progress import RunProgress
from imagemill.pipeline.cluster.tally import DEVICES, ETAGS, delete_published, peak_rss_mb
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError
from imagemill.pipeline.etags import etags_of
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.name_clashes import mark_clashes
from imagemill.pipeline.output.ownership import oldest_unaccounted_file
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.output.style_images import store_style_images
from imagemill.pipeline.plan import Plan, split_blocks
from imagemill.pipeline.resolve import ResolvedRun, check_model
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.store_failures import STORE_FAILURES, reason
from imagemill.pipeline.superseded_rows import committed_ids, mark_superseded
from imagemill.pipeline.worker_job import WorkerJob

log = logging.getLogger("imagemill.run")
BYTES_PER_PART = 64_000_000
"""Bytes of source files whose rows go into one part."""
BATCH_BYTES = 1_000_000
"""Bytes of source files in a block of large images. A block has at least one image."""
RUN_AGAIN = "Committed rows stay. Run the same command again"


def execute(resolved: ResolvedRun, plan: Plan, lease: Lease, record: RunRecord) -> None:
    """Process the images of a plan on Ray, and commit their rows.

    Args:
        resolved: the run.
        plan: what to process.
        lease: held by this run.
        record: filled in with the pool, the rate and the memory of the run.

    Raises:
        CheckpointError: when the model cannot be built.
        ConfigError: when a node does not see the input or output, or the cluster has no room for the pool.
        OutputHeld: when another run holds the output.
        StorageError: when the output accepts no more files.
        RunFailed: when Ray cannot finish.
    """
    began = time.monotonic()
    # Importing torch takes seconds, so the model is checked while Ray starts.
    checker = ThreadPoolExecutor(1, thread_name_prefix="check")
    model_check = checker.submit(check_model, resolved)
    checker.shutdown(wait=False)
    with connected(resolved.config.address):
        model_check.result()
        record.seconds["start"] = round(time.monotonic() - began, 3)
        check_shared_disks(resolved, plan, lease)
        progress = RunProgress(resolved.task.name, str(record.run_id), len(plan.todo))
        try:
            with record.timed("run"), progress:
                run_plan(resolved, plan, progress, record)
        finally:
            record_progress(record, progress)
            # A cluster that outlives the run would keep what the workers of every run published.
            for prefix in (f"{record.run_id}/", f"suspects/{record.run_id}/"):
                clean_up(partial(delete_published, prefix))
    lease.check_held()


def record_progress(record: RunRecord, progress: RunProgress) -> None:
    """Fill in the counts of the workers. Log their warnings about etags, because few people read the logs of workers."""
    counts = progress.counts
    for name in counts:
        if name.startswith(ETAGS):
            etags_of(name.removeprefix(ETAGS).removesuffix(":")).warn()
    record.seconds["first_image"] = round(progress.first_image_s, 3)
    record.images_per_s = round(progress.rate(), 2)
    record.peak_rss_mb = {
        "driver": peak_rss_mb(),
        "actor": int(counts["rss_mb"]),
        "idle_actor": int(counts["idle_mb"]),
    }
    record.stage_seconds = {
        name.removesuffix("_s"): round(seconds, 2) for name, seconds in sorted(counts.items()) if name.endswith("_s")
    }
    record.devices = [device for device in DEVICES if counts[f"on_{device}"]]
    record.bytes_in, record.bytes_out = int(counts["bytes_in"]), int(counts["bytes_out"])


def run_plan(resolved: ResolvedRun, plan: Plan, progress: RunProgress, record: RunRecord) -> None:
    """Run the plan on a pool that suits the cluster. After a loss of nodes, run the rest on the remaining nodes.

    Raises:
        Failure: for the reasons that `execute` lists.
    """
    from ray.exceptions import RayError

    from imagemill.pipeline.cluster.watch import NoRoom, watch_workers

    config, output = resolved.config, resolved.output
    todo, has_lost_nodes = mark_clashes(output, plan.todo), False
    bytes_each = max(1, plan.bytes_todo // len(todo))
    patience_s = config.pool.wait_s or PATIENCE_SECONDS
    is_shared = address_of(config.address) is not None
    while True:
        nodes = nodes_with_room(config.pool)
        try:
            pool = pool_for(config.pool, nodes, shrink=has_lost_nodes).no_more_than(len(todo))
        except ConfigError as e:
            if has_lost_nodes:
                raise RunFailed(f"nodes were lost: {e}. {RUN_AGAIN}") from None
            raise
        if not has_lost_nodes and len(plan.redone):
            mark_superseded(output, plan.redone, record)
        record.pool = pool.record()
        log.info("%d images; %s", len(todo), pool.on(nodes))
        try:
            with watch_workers(pool, progress.done, patience_s, is_shared, config.pool.wait_s):
                job = build_worker_job(resolved, plan, pool, record)
                run_blocks(job, todo, rows_of_block(len(todo), config.rows_per_part, bytes_each, pool), pool)
            return
        except RayError as e:
            raise translate_error(e, resolved) from None
        except NoRoom as e:
            if e.is_occupied:
                raise RunFailed(f"{e}. {RUN_AGAIN} when the cluster has room") from None
            committed = committed_ids(output, plan, "results", "rejects")
            rest = todo.filter(pc.invert(pc.is_in(todo["image_id"], committed)))
            if len(rest) == len(todo) and (config.pool.wait_s or not any(map(any, node_resources()))):
                raise RunFailed(f"{e}. {RUN_AGAIN} when the cluster has nodes") from None
            log.warning("nodes were lost: %s. The run continues on the nodes that are left", e)
            todo, has_lost_nodes = rest, True
            if not len(todo):
                return


def build_worker_job(resolved: ResolvedRun, plan: Plan, pool: Pool, record: RunRecord) -> WorkerJob:
    """Store the checkpoint and the style images in the output for the workers, and return the job of the workers.

    The job is small: Ray passes it again to each restarted actor, and a large object could be gone by then (ray#53727).
    """
    config, output = resolved.config, resolved.output
    # The share refers to the whole plan even after a loss of nodes. Otherwise too many remaining images are measured.
    share = config.measured_share(len(plan.todo))
    if resolved.task.stores_latent:
        record.measured_share = round(share, 4)
    store_checkpoint(output, resolved.card, resolved.weights)
    store_style_images(output, resolved.style_images)
    return WorkerJob(
        task=resolved.task.name,
        params=resolved.params.model_dump(),
        checkpoint_sha256=resolved.card.sha256,
        style_images=[sha256 for sha256, _ in resolved.style_images],
        source=resolved.source,
        output=output,
        max_pixels=config.max_pixels,
        image=config.image,
        reconstruct=config.reconstruct,
        quality=share,
        compression_level=config.compression_level,
        lineage=record.lineage(),
        batch_size=pool.batch_size,
        threads=pool.threads,
        gpus=pool.num_gpus,
        torch_threads=pool.torch_threads,
        dtype=config.pool.dtype,
        accept_damaged=config.accept_damaged,
        image_timeout_s=config.image_timeout_s,
        oldest_unaccounted_file=oldest_unaccounted_file(output, str(record.run_id), plan.rows),
    )


def run_blocks(job: WorkerJob, todo: pa.Table, rows: int, pool: Pool) -> None:
    """Send references to workers in blocks of `rows` images. The process must be connected to Ray."""
    import ray.data

    from imagemill.pipeline.cluster.suspects import MOST_DEATHS
    from imagemill.pipeline.worker import BLOCKS_AT_ONCE, Worker

    silence_ray_data()
    # Ray Data would wrap what an actor raises, and the wrapping is lost on its way to the driver.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    with warnings.catch_warnings():
        # Ray 2.60 warns of `max_restarts` and `max_task_retries`, for which it has no named arguments yet. Actors may
        # restart without limit, because the deaths of its workers show a block which image is the cause (suspects.py).
        warnings.simplefilter("ignore", ray.data.dataset.RayDeprecationWarning)
        dataset = ray.data.from_blocks(split_blocks(todo, rows)).map_batches(
            Worker,
            fn_constructor_args=[job],
            batch_format="pyarrow",
            # A batch of Ray Data is a block. With GPUs, Ray Data requires a number.
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


def silence_ray_data() -> None:
    """Hide Ray Data's progress bars, plans and stack traces. Its log file keeps them."""
    import ray.data
    from ray._private.log import PlainRayHandler

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray_data = logging.getLogger("ray.data")
    ray_data.setLevel(logging.ERROR)
    for handler in ray_data.handlers:
        if isinstance(handler, PlainRayHandler):
            handler.setLevel(logging.CRITICAL)


def check_shared_disks(resolved: ResolvedRun, plan: Plan, lease: Lease) -> None:
    """Raise ConfigError if a node does not see an input or output that is on a disk."""
    source, output, places = resolved.source.store, resolved.output, {}
    in_source = pc.and_(pc.is_null(plan.todo["problem"]), pc.is_null(plan.todo["base"]))
    files = plan.todo.filter(in_source)
    if output.local:
        places[output.full(lease.claim)] = f"output {output.url}"
    if source.local and len(files):
        places[source.full(files["path"][0].as_py())] = f"input {resolved.source.url}"
    for node, path in missing_paths(list(places)):
        raise ConfigError(
            f"{places[path]}: on a disk that the node {node} does not see ({path} does not exist there). On a cluster, use "
            "s3:// or a disk that every node mounts"
        )


def rows_of_block(todo: int, max_rows: int, bytes_each: int, pool: Pool) -> int:
    """Return the number of images in a block: four blocks for each worker, to spread the work, but at least one batch.

    Args:
        todo: number of images in the plan.
        max_rows: maximum number of rows in a part.
        bytes_each: mean bytes of a source file. A block of large images may have less than a batch, because large images do
            not fit into one batch and one worker must not get all of them.
        pool: the workers.
    """
    share = -(-todo // pool.workers)
    batch = min(pool.batch_size, share, max(1, BATCH_BYTES // bytes_each))
    return min(max_rows, max(1, BYTES_PER_PART // bytes_each), max(-(-share // 4), batch))


def translate_error(error: BaseException, resolved: ResolvedRun) -> Exception:
    """Return the Imagemill exception for an error that Ray delivers, according to its innermost cause."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    if isinstance(error, OSError) and str(error.filename).startswith("Failed to "):
        # Ray Data replaces the file name by a text about its own attempts.
        error = type(error)(error.errno, error.strerror)
    text = (str(error).splitlines() or [""])[0]  # Ray adds its own lines to what an actor raises.
    if isinstance(error, OutputHeld):
        return OutputHeld(text)
    if isinstance(error, StorageError):
        return StorageError(f"{text}. {RUN_AGAIN}")
    if isinstance(error, STORE_FAILURES):
        return StorageError(f"{resolved.output.url}: {reason(error)}. {RUN_AGAIN}")
    return RunFailed(f"Ray: {reason(error)}. {RUN_AGAIN}")
