"""The nodes of a cluster: their resources, and functions that run on each of them in a separate process."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from imagemill.pipeline.config import PoolConfig
from imagemill.pipeline.pool import Nodes

log = logging.getLogger("imagemill.run")
ANSWER_SECONDS = 60.0
"""Time limit for the answer of a node."""
PATIENCE_SECONDS = 60.0
"""Seconds that a run waits for an image, or for a first node, while workers have no place."""
LOOK_SECONDS = 2.0
"""Interval at which the nodes of a cluster are checked."""
Answer = TypeVar("Answer")


def node_resources() -> Nodes:
    """Return all (CPUs, GPUs) of each living node."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def free_resources() -> Nodes:
    """Return the free (CPUs, GPUs) of each living node."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node().values()
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in free]


def nodes_with_room(want: PoolConfig, patience_s: float = PATIENCE_SECONDS) -> Nodes:
    """Wait until a node has resources, because a cluster may have just started or lost its nodes. Return the nodes.

    Return at once if `want.wait_s` announces more nodes: an autoscaler only adds nodes for workers that are pending.
    """
    end, has_logged = time.monotonic() + (0 if want.wait_s else patience_s), False
    while True:
        nodes = node_resources()
        if any(cpu or gpu for cpu, gpu in nodes) or time.monotonic() >= end:
            return nodes
        if not has_logged:
            log.info("no node has a CPU or a GPU. Waiting up to %.0f s for one", patience_s)
            has_logged = True
        time.sleep(LOOK_SECONDS)


def ask_nodes(question: Callable[[], Answer], nodes: list[dict[str, Any]]) -> Iterator[tuple[str, Answer]]:
    """Yield (address, result of `question`) for each node. Log a warning for a node that does not answer.

    Args:
        question: a function without arguments.
        nodes: entries of `ray.nodes()`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The task takes no resources, so that a busy node answers too. Its process ends after one call, because the process may
    # have imported torch.
    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(question)
    pending = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in nodes
    }
    for answer, node in pending.items():
        try:
            yield node["NodeManagerAddress"], ray.get(answer, timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as e:
            log.warning("node %s did not answer: %s", node["NodeManagerAddress"], type(e).__name__)


def missing_paths(paths: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (node, path) for each path that does not exist on a node with CPUs or GPUs."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    if not paths or len(alive) < 2:
        return
    working = [node for node in alive if node["Resources"].keys() & {"CPU", "GPU"}]
    for node, missing in ask_nodes(lambda: [path for path in paths if not os.path.exists(path)], working):
        yield from ((node, path) for path in missing)


def nodes_without_cuda() -> list[str]:
    """Return the addresses of nodes that have GPUs in Ray but whose torch finds no CUDA device."""
    import ray

    def has_cuda() -> bool:
        import torch

        return torch.cuda.is_available()

    with_gpus = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return [node for node, has in ask_nodes(has_cuda, with_gpus) if not has]
