"""The pool fits the cluster, and a run that lost its nodes does not wait forever."""

import os
import re
import signal
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.pipeline.cluster.nodes import nodes_with_room
from imagemill.pipeline.cluster.watch import NoRoom, Room
from imagemill.pipeline.config import PoolConfig, RunConfig
from imagemill.pipeline.engines.engine import BYTES_PER_PART, blocks_at_once, rows_of_block
from imagemill.pipeline.errors import ConfigError, Deadline
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.pool import Pool, pool_for, room_for
from imagemill.pipeline.run import run
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.storage import Store
from tests.support.run_processes import images_written, make_photos


def test_pool_that_cannot_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pool\.workers=4"):
        pool_for(PoolConfig(workers=4), [(2, 0)])
    with pytest.raises(ConfigError, match="room for 0"):
        pool_for(PoolConfig(), [(0, 0)])
    assert pool_for(PoolConfig(), [(2, 0)]).workers == 2
    assert pool_for(PoolConfig(), [(1, 0)]).workers == 1
    assert pool_for(PoolConfig(), [(0, 0), (2, 0), (2, 0)]).workers == 4
    on_gpu = pool_for(PoolConfig(), [(8, 1), (64, 0)])
    assert (on_gpu.workers, on_gpu.num_gpus) == (1, 1)
    assert on_gpu.num_cpus == 8
    assert pool_for(PoolConfig(), [(4, 4)]).workers == 4
    assert pool_for(PoolConfig(gpu=False), [(8, 1)]).num_gpus == 0


def test_pool_counts_shares_of_gpus() -> None:
    """A worker's share lies on a single GPU; remainders of several GPUs are not combined."""
    half_gpu_pool = pool_for(PoolConfig(gpus_per_worker=0.5), [(8, 2), (64, 0)])
    assert (half_gpu_pool.workers, half_gpu_pool.num_gpus, half_gpu_pool.num_cpus, half_gpu_pool.threads) == (4, 0.5, 2, 2)
    assert half_gpu_pool.each == "2 CPUs and 0.5 of a GPU"
    assert pool_for(PoolConfig(gpus_per_worker=0.6), [(8, 2)]).workers == 2
    third_gpu_pool = pool_for(PoolConfig(gpus_per_worker=0.3333), [(2, 1)])
    # Two thirds of a CPU, rounded up to Ray's unit of 1/10,000, would fit only twice.
    assert (third_gpu_pool.workers, third_gpu_pool.num_cpus) == (3, 0.6666)
    with pytest.raises(ConfigError, match=r"room for 4 workers; each takes 2 CPUs and 0\.5 of a GPU"):
        pool_for(PoolConfig(workers=5, gpus_per_worker=0.5), [(8, 2)])
    # The key has no effect if no worker uses a GPU.
    assert pool_for(PoolConfig(gpus_per_worker=0.5), [(2, 0)]).num_gpus == 0
    assert pool_for(PoolConfig(gpus_per_worker=0.5, gpu=False), [(2, 1)]).num_gpus == 0


def test_pool_places_no_worker_on_a_head_without_cpu() -> None:
    assert pool_for(PoolConfig(), [(0, 1), (4, 1)]).workers == 1
    assert pool_for(PoolConfig(), [(0, 1), (4, 0)]).num_gpus == 0
    with pytest.raises(ConfigError, match="room for 0"):
        pool_for(PoolConfig(), [(0, 1)])


def test_pool_without_gpu_nodes_uses_cpus() -> None:
    assert pool_for(PoolConfig(workers=2), [(0, 0), (2, 0)], shrink=True).num_gpus == 0
    with pytest.raises(ConfigError, match="room for 0"):
        pool_for(PoolConfig(workers=2, gpu=True), [(0, 0), (2, 0)], shrink=True)


def ray_places(pool: Pool, nodes: list[tuple[int, int]]) -> int:
    """Count the workers that Ray can place one by one, in Ray's unit of 1/10,000."""
    cpu, gpu, placed_count = round(pool.num_cpus * 10_000), round(pool.num_gpus * 10_000), 0
    free = [[cpus * 10_000, *[10_000] * gpus] for cpus, gpus in nodes]
    for _ in range(pool.workers):
        for node in free:
            device = next((n for n, free_share in enumerate(node[1:], 1) if free_share >= gpu), None)
            if node[0] >= cpu and (device or not gpu):
                node[0] -= cpu
                if gpu:
                    node[device or 0] -= gpu
                placed_count += 1
                break
    return placed_count


NODES = st.lists(st.tuples(st.integers(0, 96), st.integers(0, 8)), min_size=1, max_size=5)


@given(
    nodes=NODES,
    share=st.floats(0.01, 1) | st.sampled_from([0.1, 0.25, 0.3, 1 / 3, 0.5, 2 / 3, 1.0]),
    gpu=st.none() | st.booleans(),
    workers=st.none() | st.integers(1, 40),
)
def test_pool_fits_all_its_workers(nodes, share, gpu, workers) -> None:
    pool_config = PoolConfig(gpus_per_worker=share, gpu=gpu, workers=workers)
    try:
        pool = pool_for(pool_config, nodes)
    except ConfigError as e:
        (room,) = re.findall(r"there is room for (\d+)", str(e))
        assert int(room) < (workers or 1)
        return
    assert ray_places(pool, nodes) == pool.workers <= room_for(pool, nodes)
    assert pool.num_gpus == (share if pool.num_gpus else 0)
    # Each GPU gets as many workers as shares fit, unless the config asks for fewer.
    if pool.num_gpus and not workers:
        assert pool.workers == sum(gpus for cpus, gpus in nodes if cpus) * (10_000 // round(share * 10_000))


@given(
    todo=st.integers(1, 10**7),
    workers=st.integers(1, 500),
    part_rows=st.integers(1, 10**4),
    batch_size=st.integers(1, 64),
    bytes_each=st.integers(1, 10**8),
)
def test_blocks_give_every_worker_some_work(todo, workers, part_rows, batch_size, bytes_each) -> None:
    pool = Pool(min(workers, todo), num_cpus=1, num_gpus=0, threads=2, batch_size=batch_size)
    rows = rows_of_block(todo, part_rows, bytes_each, pool)
    blocks = -(-todo // rows)
    part_rows = min(part_rows, max(1, BYTES_PER_PART // bytes_each))
    assert 1 <= rows <= part_rows
    # Rounding may leave some workers without a block: 7 images in blocks of 3 are 3, 3 and 1.
    assert blocks >= min(todo, pool.workers) / 2
    assert rows == part_rows or blocks <= 4 * pool.workers


def test_pool_shrinks_after_lost_nodes() -> None:
    assert pool_for(PoolConfig(workers=4), [(0, 0), (2, 0)], shrink=True).workers == 2
    assert pool_for(PoolConfig(), [(0, 0), (2, 0)], shrink=True).workers == 2
    with pytest.raises(ConfigError, match="room for 0"):
        pool_for(PoolConfig(workers=4), [(0, 0)], shrink=True)


def test_pool_plans_for_autoscaled_nodes() -> None:
    assert pool_for(PoolConfig(workers=6, wait_s=600), [(0, 0)]).workers == 6
    on_gpu = pool_for(PoolConfig(workers=2, gpu=True, wait_s=600), [(0, 0)])
    assert (on_gpu.num_gpus, on_gpu.num_cpus) == (1, 1)
    assert room_for(on_gpu, [(0, 0)]) == 0
    with pytest.raises(ConfigError, match=r"pool\.workers: missing"):
        pool_for(PoolConfig(wait_s=600), [(0, 0)])


def test_pool_waits_once_for_autoscaled_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait starts with the workers, because the autoscaler adds nodes only on demand."""
    sleeps: list[float] = []
    monkeypatch.setattr("imagemill.pipeline.cluster.nodes.node_resources", lambda: [(0.0, 0.0)])
    monkeypatch.setattr("imagemill.pipeline.cluster.nodes.time.sleep", sleeps.append)
    assert nodes_with_room(PoolConfig(workers=2, wait_s=600)) == [(0.0, 0.0)]
    assert not sleeps
    nodes_with_room(PoolConfig(), patience_s=0.01)
    assert sleeps


def test_pool_describes_its_resources() -> None:
    nodes = [(0.0, 0.0), (8.0, 1.0), (8.0, 1.0)]
    description = pool_for(PoolConfig(), nodes).on(nodes)
    assert description == "2 workers of 8 CPUs and a GPU each; cluster: 16 CPUs and 2 GPUs on 2 nodes"


@pytest.mark.parametrize(("nodes", "is_ended"), [([(1, 0)], True), ([(2, 0)], False)])
def test_run_without_room_and_progress_ends(monkeypatch: pytest.MonkeyPatch, nodes, is_ended) -> None:
    for resources in ("node_resources", "free_resources"):
        monkeypatch.setattr(f"imagemill.pipeline.cluster.watch.{resources}", lambda: nodes)
    monkeypatch.setattr("imagemill.pipeline.cluster.watch.LOOK_SECONDS", 0.0)
    check_room = Room(Pool(workers=2, num_cpus=1, num_gpus=0, threads=2, batch_size=8), lambda: 7, patience_s=0.01)
    check_room()
    time.sleep(0.02)
    if is_ended:
        with pytest.raises(NoRoom, match="2 workers"):
            check_room()
    else:
        check_room()


@pytest.mark.parametrize(
    ("free", "placed_workers", "wait_s", "is_ended", "expected_message"),
    [
        ([(0.0, 0.0)], 0, 0, False, "0 of 2 CPUs are free, and 0 of 2 workers have a place"),
        ([(0.0, 0.0)], 1, 0.001, False, "0 of 2 CPUs are free, and 1 of 2 workers have a place"),
        ([(0.0, 0.0)], 0, 0.001, True, ""),
        ([(0.0, 0.0)], 2, 0.001, False, ""),
        ([(1.0, 0.0)], 1, 0.001, False, ""),
    ],
    ids=["waits", "some work", "limit", "all work", "room"],
)
def test_pool_reports_resources_held_by_others(
    free, placed_workers, wait_s, is_ended, expected_message, monkeypatch, caplog
) -> None:
    """If other jobs hold the CPUs, a run waits, logs it, and ends only after `wait_s`."""
    cluster_state = {"node_resources": [(2.0, 0.0)], "free_resources": free, "count_placed": placed_workers}
    for name, value in cluster_state.items():
        monkeypatch.setattr(f"imagemill.pipeline.cluster.watch.{name}", lambda value=value: value)
    for name in ("LOOK_SECONDS", "OTHER_WORK_SECONDS"):
        monkeypatch.setattr(f"imagemill.pipeline.cluster.watch.{name}", 0.0)
    pool = Pool(workers=2, num_cpus=1, num_gpus=0, threads=2, batch_size=8)
    check_room = Room(pool, lambda: 7, patience_s=0.01, shared=True, wait_s=wait_s)
    time.sleep(0.02)
    if is_ended:
        with pytest.raises(NoRoom, match="other work has held the cluster") as error:
            check_room()
        assert error.value.is_occupied
    else:
        check_room()
        check_room()
        # The message is logged at most once a minute.
        assert [expected_message in record.message for record in caplog.records] == ([True] if expected_message else [])


def test_pool_uses_less_than_one_cpu() -> None:
    """A container with half a CPU gets one worker."""
    pool = pool_for(PoolConfig(), [(0.5, 0)])
    assert (pool.workers, pool.num_cpus) == (1, 0.5)
    assert pool_for(PoolConfig(), [(1.5, 0)]).workers == 1
    assert pool_for(PoolConfig(), [(0.5, 0), (2, 0)]).num_cpus == 1


def test_first_worker_leaves_blocks_for_the_others() -> None:
    assert [blocks_at_once(blocks, 2) for blocks in (1, 2, 3, 4, 100)] == [1, 1, 2, 2, 2]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("first_node", "pool"), [((2.0, 0.0), "2 workers of 1 CPU each"), ((1.0, 1.0), "1 worker of 1 CPU and a GPU each")]
)
def test_run_continues_in_a_smaller_pool(first_node, pool, tmp_path, crops, monkeypatch, caplog) -> None:
    """A node dies: the pool was sized for two CPUs or for a GPU, and one CPU remains."""
    make_photos(Store(str(tmp_path / "in")), 30, crops)
    node_lists = iter([[first_node]])
    for module in ("cluster.nodes", "engines.ray_engine", "cluster.watch"):
        monkeypatch.setattr(f"imagemill.pipeline.{module}.node_resources", lambda: next(node_lists, [(1.0, 0.0)]))
    monkeypatch.setattr("imagemill.pipeline.cluster.watch.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("imagemill.pipeline.engines.ray_engine.PATIENCE_SECONDS", 0.1)
    with caplog.at_level("INFO", logger="imagemill"):
        record = run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out"), rows_per_part=5))
    messages = [
        log_record.message
        for log_record in caplog.records
        if log_record.name.startswith("imagemill") and "worker" in log_record.message
    ]
    expected = (f"30 images; {pool}", "nodes were lost", "1 worker of 1 CPU each")
    assert all(text in line for text, line in zip(expected, messages, strict=True)), messages
    assert (record["ok"], record["rejected"]) == (30, 0)
    verification = verify(Store(str(tmp_path / "out")))
    assert (verification.problems, verification.rows, verification.files) == ([], 30, 30)


@pytest.mark.usefixtures("ray_session")
def test_signal_ends_a_run_and_the_next_completes_it(tmp_path, crops) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 100, crops)

    def raise_deadline(signum: int, frame: Any) -> None:
        raise Deadline

    def send_alarm() -> None:
        while not images_written(output):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGALRM)

    previous_handler = signal.signal(signal.SIGALRM, raise_deadline)
    config = RunConfig(task="denoise", input=source.url, output=output.url, rows_per_part=5)
    record = RunRecord()
    try:
        threading.Thread(target=send_alarm, daemon=True).start()
        with pytest.raises(Deadline):
            run(config, record)
    finally:
        signal.signal(signal.SIGALRM, previous_handler)
    assert record.exit_code == Deadline.exit_code
    assert record.ok is not None
    assert record.ok < 100
    # No row says which engine wrote it, and the local engine is faster.
    run(config.model_copy(update={"engine": "local"}))
    verification = verify(output)
    assert (verification.problems, verification.rows, verification.files) == ([], 100, 100)


def test_large_photos_are_distributed_evenly() -> None:
    pool = Pool(2, num_cpus=1, num_gpus=0, threads=2, batch_size=8)
    assert rows_of_block(16, 250, 3_000_000, pool) == 2
    assert rows_of_block(16, 250, 30_000, pool) == 8
