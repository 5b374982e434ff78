"""The Ray engine: runs the blocks of a plan on a pool of Ray Data actors, one per worker."""

import atexit
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.errors import CheckpointError
from imagemill.pipeline.cluster.connection import address_of, connected
from imagemill.pipeline.cluster.contact import clean_up, while_answering
from imagemill.pipeline.cluster.lean_start import is_own_ray
from imagemill.pipeline.cluster.nodes import PATIENCE_SECONDS, missing_paths, node_resources, nodes_with_room
from imagemill.pipeline.cluster.ray_channel import RayChannel
from imagemill.pipeline.config import PoolConfig, RunConfig
from imagemill.pipeline.engines.engine import RUN_AGAIN, Work, blocks_at_once
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError
from imagemill.pipeline.logs import configure_worker
from imagemill.pipeline.machine import available_cpus, has_gpu
from imagemill.pipeline.pool import Pool, pool_for
from imagemill.pipeline.resolve import ResolvedRun
from imagemill.pipeline.run_progress import RunProgress
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.superseded_rows import committed_ids
from imagemill.pipeline.worker import BLOCKS_AT_ONCE, Worker
from imagemill.pipeline.worker_job import WorkerJob

log = logging.getLogger("imagemill.run")


class RayWorker(Worker):
    """A worker in a Ray actor. Its counts are metrics as well.

    Args:
        job: the same for all blocks of a run.
    """

    def __init__(self, job: WorkerJob) -> None:
        from imagemill.pipeline.cluster.metrics import WorkerMetrics

        configure_worker(job.lineage["run_id"])
        super().__init__(job, RayChannel(), WorkerMetrics(job.task, job.lineage["run_id"]))
        # Tearing down Python and torch takes a CPU-second, and Ray has finished with the process before that.
        atexit.register(os._exit, 0)

    def __call__(self, block: pa.Table) -> dict[str, list[Any]]:
        """Process and commit a block, and return only its number of images, to keep the rows off the network."""
        return {"rows": [self.process_block(block)]}


class RayEngine:
    """Runs workers on a Ray cluster, or on a private Ray of this process.

    Args:
        config: names the cluster and the pool.
    """

    name = "ray"

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def start(self) -> None:
        """Do nothing: Ray starts when a run connects."""

    @contextmanager
    def connected(self, run_id: str, images: int) -> Iterator[RayChannel]:
        """Connect to Ray for a `with` block. `Engine` describes the rest."""
        channel = RayChannel()
        with connected(self.config.address, workers=min(images, workers_in_advance(self.config.pool))):
            try:
                yield channel
            finally:
                # A cluster that outlives the run would keep what the workers of every run published.
                for prefix in (f"{run_id}/", f"suspects/{run_id}/"):
                    clean_up(partial(channel.delete, prefix))

    def run(self, work: Work, progress: RunProgress) -> None:
        """Process and commit all images. After a loss of nodes, process the rest on the remaining nodes."""
        from ray.exceptions import RayError

        from imagemill.pipeline.cluster.metrics import waiting_gauge
        from imagemill.pipeline.cluster.watch import NoRoom, watch_workers

        check_shared_disks(work)
        progress.report_waiting = waiting_gauge(progress.task, progress.run_id)
        pool_config, output = self.config.pool, work.resolved.output
        todo, has_lost_nodes = work.list_images(), False
        patience_s = pool_config.wait_s or PATIENCE_SECONDS
        is_shared = address_of(self.config.address) is not None
        while True:
            nodes = nodes_with_room(pool_config)
            try:
                pool = pool_for(pool_config, nodes, shrink=has_lost_nodes).no_more_than(len(todo))
            except ConfigError as e:
                if has_lost_nodes:
                    raise RunFailed(f"nodes were lost: {e}. {RUN_AGAIN}") from None
                raise
            if not has_lost_nodes:
                work.store_model()
                work.mark_superseded()
            log.info("%d images; %s", len(todo), pool.on(nodes))
            try:
                with watch_workers(pool, progress.done, patience_s, is_shared, pool_config.wait_s):
                    run_blocks(work.build_job(pool), work.split(todo, pool), pool)
                return
            except RayError as e:
                raise translate_error(e, work.resolved) from None
            except CheckpointError:
                work.unmark_superseded()
                raise
            except NoRoom as e:
                if e.is_occupied:
                    raise RunFailed(f"{e}. {RUN_AGAIN} when the cluster has room") from None
                committed = committed_ids(output, work.plan, "results", "rejects")
                rest = todo.filter(pc.invert(pc.is_in(todo["image_id"], committed)))
                if len(rest) == len(todo) and (pool_config.wait_s or not any(map(any, node_resources()))):
                    raise RunFailed(f"{e}. {RUN_AGAIN} when the cluster has nodes") from None
                log.warning("nodes were lost: %s. The run continues on the nodes that are left", e)
                todo, has_lost_nodes = rest, True
                if not len(todo):
                    return


def workers_in_advance(pool: PoolConfig) -> int:
    """Return how many worker processes may import torch while a private Ray starts. Others start when they are needed."""
    # The number of GPUs is known only when Ray has started.
    default = 1 if has_gpu() and pool.gpu is not False else max(1, int(available_cpus()))
    return pool.workers or default


def run_blocks(job: WorkerJob, blocks: list[pa.Table], pool: Pool) -> None:
    """Send blocks of references to workers. The process must be connected to Ray."""
    import ray.data

    from imagemill.pipeline.cluster.helper_actors import helper_actors_in_driver
    from imagemill.pipeline.suspects import MOST_DEATHS

    silence_ray_data()
    # Ray Data would wrap what an actor raises, and the wrapping is lost on its way to the driver.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    with warnings.catch_warnings():
        # Ray 2.60 warns of `max_restarts` and `max_task_retries`, for which it has no named arguments yet. Actors may
        # restart without limit, because the deaths of its workers show a block which image is the cause (suspects.py).
        warnings.simplefilter("ignore", ray.data.dataset.RayDeprecationWarning)
        dataset = ray.data.from_blocks(blocks).map_batches(
            RayWorker,
            fn_constructor_args=[job],
            batch_format="pyarrow",
            # A batch of Ray Data is a block. With GPUs, Ray Data requires a number.
            batch_size=len(blocks[0]),
            compute=ray.data.ActorPoolStrategy(
                size=pool.workers,
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
                max_tasks_in_flight_per_actor=blocks_at_once(len(blocks), pool.workers),
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            max_restarts=-1,
            max_task_retries=MOST_DEATHS,
        )
    with helper_actors_in_driver() if is_own_ray() else nullcontext():
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


def check_shared_disks(work: Work) -> None:
    """Raise ConfigError if a node does not see an input or output that is on a disk."""
    source, output, todo = work.resolved.source, work.resolved.output, work.plan.todo
    places = {}
    files = todo.filter(pc.and_(pc.is_null(todo["problem"]), pc.is_null(todo["base"])))
    if output.local:
        places[output.full(work.lease.claim)] = f"output {output.url}"
    if source.store.local and len(files):
        places[source.store.full(files["path"][0].as_py())] = f"input {source.url}"
    for node, path in missing_paths(list(places)):
        raise ConfigError(
            f"{places[path]}: on a disk that the node {node} does not see ({path} does not exist there). On a cluster, use "
            "s3:// or a disk that every node mounts"
        )


def translate_error(error: BaseException, resolved: ResolvedRun) -> Exception:
    """Return the Imagemill exception for an error that Ray delivers, according to its innermost cause."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    if isinstance(error, OSError) and str(error.filename).startswith("Failed to "):
        # Ray Data replaces the file name by a text about its own attempts.
        error = type(error)(error.errno, error.strerror)
    text = (str(error).splitlines() or [""])[0]  # Ray adds its own lines to what an actor raises.
    if isinstance(error, CheckpointError):
        return CheckpointError(text)
    if isinstance(error, OutputHeld):
        return OutputHeld(text)
    if isinstance(error, StorageError):
        return StorageError(f"{text}. {RUN_AGAIN}")
    if isinstance(error, store_failures()):
        return StorageError(f"{resolved.output.url}: {reason(error)}. {RUN_AGAIN}")
    return RunFailed(f"Ray: {reason(error)}. {RUN_AGAIN}")
