"""Runs on nodes that die, are too few or start late lose and repeat no image, and never hang."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.clusters import RayCluster
from tests.support.run_processes import images_written, make_photos, wait_for
from tests.support.servers import S3, environment_of

pytestmark = pytest.mark.chaos


@pytest.fixture
def cluster(s3: S3) -> Iterator[RayCluster]:
    """Start a head node without CPUs, whose nodes can reach the S3 server."""
    ray_cluster = RayCluster(token="e" * 64, environment=environment_of(s3.endpoint))
    try:
        ray_cluster.start(cpus=0, dashboard=False)
        yield ray_cluster
    finally:
        ray_cluster.stop()


def start(cluster: RayCluster, *places: str, pool: str = "pool.batch_size=2", log: Path | None = None):
    command = [sys.executable, "-m", "imagemill", "denoise", *places, "--address", cluster.address]
    command += ["--set", "rows_per_part=10", "--set", pool]
    variables = cluster.variables() | cluster.environment
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=variables)


def wait_for_exit(run: "subprocess.Popen[bytes]") -> tuple[int, str]:
    log = run.communicate(timeout=900)[1].decode()
    return run.returncode, log


def record_of(output: Store) -> dict:
    return json.loads(output.read(next(e.path for e in output.entries("runs") if e.path.endswith("run.json"))))


def assert_complete(output: Store, count: int) -> None:
    verification = verify(output)
    assert verification.problems == []
    assert (verification.images, verification.rows, verification.files, verification.rejects) == (count, count, count, 0)


@pytest.mark.parametrize("another", [True, False], ids=["replaced", "not replaced"])
def test_run_survives_the_loss_of_a_node(another: bool, cluster: RayCluster, s3: S3, crops: list[np.ndarray]) -> None:
    source, output = s3.store("in"), s3.store("out")
    make_photos(source, 400, crops)
    first, _ = cluster.add(2), cluster.add(2)
    cluster.wait_for_nodes()
    run = start(cluster, source.url, output.url)
    wait_for(run, lambda: images_written(output) > 80)
    first.kill()
    if another:
        cluster.add(2)
    code, log = wait_for_exit(run)
    print(log)
    assert code == 0, log
    assert "4 workers of 1 CPU each; cluster: 4 CPUs and 0 GPUs on 2 nodes" in log
    # Without a new node, the remaining workers finish the run, or the run continues with a pool of two.
    assert_complete(output, 400)
    record = record_of(output)
    assert (record["planned"], record["ok"], record["rejected"]) == (400, 400, 0)


def test_run_reports_the_loss_of_all_nodes(cluster: RayCluster, s3: S3, crops: list[np.ndarray]) -> None:
    source, output = s3.store("in"), s3.store("out")
    make_photos(source, 200, crops)
    only = cluster.add(2)
    cluster.wait_for_nodes()
    run = start(cluster, source.url, output.url, pool="pool={workers: 2, batch_size: 2, wait_s: 20}")
    wait_for(run, lambda: images_written(output) > 50)
    only.kill()
    code, log = wait_for_exit(run)
    assert code in (1, 2), log
    assert "room for 0" in log or "no image was processed" in log
    cluster.add(2)
    cluster.wait_for_nodes()
    code, log = wait_for_exit(start(cluster, source.url, output.url))
    assert code == 0, log
    assert_complete(output, 200)


def test_run_waits_for_nodes_up_to_a_limit(cluster: RayCluster, s3: S3, crops: list[np.ndarray]) -> None:
    source, output = s3.store("in"), s3.store("out")
    make_photos(source, 20, crops)
    code, log = wait_for_exit(start(cluster, source.url, output.url, pool="pool={workers: 2, wait_s: 15}"))
    assert code == 1, log
    assert "no image was processed for 15 s, and the cluster has no room for 2 workers of 1 CPU each; cluster: 0 CPUs" in log
    run = start(cluster, source.url, output.url, pool="pool={workers: 2, wait_s: 300}")
    cluster.add(2)
    code, log = wait_for_exit(run)
    assert code == 0, log
    assert_complete(output, 20)


def test_run_refuses_a_disk_that_a_node_cannot_see(cluster: RayCluster, tmp_path: Path, crops: list[np.ndarray]) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 5, crops)
    # No node can follow the link, so the image is a reject whose reason does not blame the disks.
    (tmp_path / "in/!first.png").symlink_to("nowhere")
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a node with separate disks requires root")
    mounted_node = cluster.add(2)
    cluster.wait_for_nodes()
    code, log = wait_for_exit(start(cluster, source.url, str(tmp_path / "seen")))
    assert code == 0, log
    mounted_node.kill()
    # A separate mount namespace simulates the disk of another machine.
    mount_command = f'mount -t tmpfs none {tmp_path} && exec "$@"'
    cluster.add(2, before=["unshare", "--mount", "/bin/sh", "-c", mount_command, "sh"])
    cluster.wait_for_nodes()
    code, log = wait_for_exit(start(cluster, source.url, output.url))
    assert code == 2, log
    assert "does not see" in log.splitlines()[-1]
    assert [e.path for e in output.entries("results")] == []
