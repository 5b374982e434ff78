"""Choose how many workers train, and whether they use GPUs."""

import logging

from imagemill.jobs.training.config import TrainConfig
from imagemill.pipeline.cluster.nodes import node_resources, nodes_without_cuda
from imagemill.pipeline.pool import WITHOUT_CUDA, Nodes

log = logging.getLogger("imagemill.train")


def training_nodes() -> Nodes:
    """Return (CPUs, GPUs) of each node, without GPUs if torch finds no CUDA device on one of the GPU nodes.

    Ray chooses the nodes of the workers, and NCCL needs a CUDA device on each of them.
    """
    nodes = node_resources()
    if not any(gpu for _, gpu in nodes) or not (blind := nodes_without_cuda()):
        return nodes
    log.warning("%s (%s): training runs on the CPUs, with gloo between its workers", WITHOUT_CUDA, ", ".join(blind))
    return [(cpu, 0.0) for cpu, _ in nodes]


def choose_workers(config: TrainConfig, nodes: Nodes) -> tuple[bool, int, float]:
    """Return whether workers use GPUs, their number, and the CPUs for each worker and its reading tasks.

    At least half of these CPUs are for the tasks that read and crop.

    Args:
        config: the training.
        nodes: (CPUs, GPUs) of each node.
    """
    # A node without CPUs, such as a head node, gets no workers.
    gpus = int(sum(gpu for cpu, gpu in nodes if cpu))
    workers = min(config.workers, gpus) if gpus else config.workers
    # A worker runs on one node and shares its CPUs with one worker for each other GPU.
    most = min((cpu / max(1.0, gpu) for cpu, gpu in nodes if cpu and (gpu or not gpus)), default=1.0)
    return bool(gpus), workers, min(sum(cpu for cpu, _ in nodes) / workers, most)
