"""How much memory one pass of the model of a worker may take."""

import os
from pathlib import Path

import torch

from imagemill.pipeline.machine import available_cpus

MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The limit of a container (cgroup 2 and 1). Without a limit, the file holds a word or a number above all memory."""
MODEL_SHARE = 0.75
"""Share of a worker's memory for the model. Images, libraries and the system need the rest."""


def model_memory(device: str, workers: int = 1, cpus: int = 1, gpus: float = 1) -> int | None:
    """Return the bytes that one pass may take; None where the system does not tell its memory.

    The result depends on the machine and the pool, never on what is free at the moment, so that a repeated run rejects the
    same images.

    Args:
        device: `cpu` or `cuda`, where the model runs.
        workers: workers of the run.
        cpus: CPUs of each worker.
        gpus: share of a GPU that the worker has.
    """
    if device == "cuda":
        return int(MODEL_SHARE * gpus * torch.cuda.get_device_properties("cuda").total_memory)
    memory = machine_memory()
    if memory is None:
        return None
    workers_here = max(1, min(workers, int(available_cpus()) // cpus))
    return int(MODEL_SHARE * memory / workers_here)


def machine_memory() -> int | None:
    """Return the bytes of memory that this machine or its container has; None where the system does not tell."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for path in MEMORY_LIMITS:
        try:
            sizes.append(int(path.read_text()))
        except (OSError, ValueError):
            continue  # No such container, or the limit "max".
    return min(sizes)
