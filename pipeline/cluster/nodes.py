"""Questions to the nodes of a cluster, each answered by a process of its own there."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

log = logging.getLogger("imagemill.run")
ANSWER_SECONDS = 60.0
Answer = TypeVar("Answer")


def answers(question: Callable[[], Answer], nodes: list[dict[str, Any]]) -> Iterator[tuple[str, Answer]]:
    """The address of each node, as `ray.nodes()` has it, and what `question` returns there; no answer is a warning."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without resources, so that a node that is busy answers too. The process ends, as it may hold torch.
    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(question)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in nodes
    }
    for answer, node in asked.items():
        try:
            yield node["NodeManagerAddress"], ray.get(answer, timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as e:
            log.warning("node %s did not answer: %s", node["NodeManagerAddress"], type(e).__name__)


def missing_paths(paths: list[str]) -> Iterator[tuple[str, str]]:
    """(node, path) for each path that a working node of a cluster does not have on its disks."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    if not paths or len(alive) < 2:
        return
    working = [node for node in alive if node["Resources"].keys() & {"CPU", "GPU"}]
    for node, missing in answers(lambda: [path for path in paths if not os.path.exists(path)], working):
        yield from ((node, path) for path in missing)


def nodes_without_cuda() -> list[str]:
    """The addresses of the nodes that have GPUs for Ray and whose torch finds no CUDA device."""
    import ray

    def has_cuda() -> bool:
        import torch

        return torch.cuda.is_available()

    with_gpus = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return [node for node, has in answers(has_cuda, with_gpus) if not has]
