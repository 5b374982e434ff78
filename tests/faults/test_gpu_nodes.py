"""Test CPU and GPU nodes without a CUDA device: plans, submitted runs and lost GPU nodes."""

import json
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

pytestmark = pytest.mark.chaos


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """Start a head node without CPUs or GPUs."""
    ray_cluster = RayCluster(token="f" * 64)
    try:
        yield ray_cluster
    finally:
        ray_cluster.stop()


def command(cluster: RayCluster, *arguments: str) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "imagemill", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=cluster.variables())


def wait_for_exit(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    log = process.communicate(timeout=600)[0].decode()
    return process.returncode, log


def record_of(output: Store) -> dict:
    return json.loads(output.read(next(e.path for e in output.entries("runs") if e.path.endswith("run.json"))))


@pytest.mark.timeout(900)
def test_mixed_cluster_runs_on_its_gpu_nodes(cluster: RayCluster, tmp_path: Path, crops: list[np.ndarray]) -> None:
    """Two workers share one GPU as planned; each command warns once that they compute on CPUs."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 20, crops)
    cluster.start(cpus=0)
    cluster.add(1)
    cluster.add(2, gpus=1)
    cluster.wait_for_nodes()
    task = ("--set", "task=denoise", "--set", "pool.gpus_per_worker=0.5", "--input", source.url, "--output", output.url)
    use = "2 workers of 1 CPU and 0.5 of a GPU each; cluster: 3 CPUs and 1 GPU on 2 nodes"
    for order in (("plan", "--address", cluster.address), ("submit", "--dashboard", cluster.dashboard)):
        code, log = wait_for_exit(command(cluster, *order, *task))
        assert code == 0, log
        assert use in " ".join(log.split())
        assert log.count("finds no CUDA device") == 1, log
    assert verify(output).problems == []
    assert (record_of(output)["ok"], record_of(output)["devices"]) == (20, ["cpu"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("second_node", [{"gpus": 1}, {"gpus": 0}], ids=["a GPU is left", "CPUs are left"])
def test_gpu_node_dies_in_the_middle(
    second_node: dict, cluster: RayCluster, tmp_path: Path, crops: list[np.ndarray]
) -> None:
    """The run continues on the other GPU node, or on CPUs without another GPU node."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 300, crops)
    cluster.start(cpus=0, dashboard=False)
    first, _ = cluster.add(2, gpus=1), cluster.add(2, **second_node)
    cluster.wait_for_nodes()
    settings = ("--set", "rows_per_part=10", "--set", "pool.batch_size=2")
    run = command(cluster, "denoise", source.url, output.url, "--address", cluster.address, *settings)
    wait_for(run, lambda: images_written(output) > 60)
    first.kill()
    code, log = wait_for_exit(run)
    assert code == 0, log
    assert f"{1 + second_node['gpus']} workers of 2 CPUs and a GPU each" in log
    assert log.count("finds no CUDA device") == 1, log
    assert verify(output).problems == []
    assert (record_of(output)["ok"], record_of(output)["rejected"]) == (300, 0)
