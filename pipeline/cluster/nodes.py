"""Run a function on the nodes of a cluster, in a separate process on each node."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

log = logging.getLogger("imagemill.run")
ANSWER_SECONDS = 60.0
"""Time limit for the answer of a node."""
Answer = TypeVar("Answer")


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
