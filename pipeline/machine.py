"""What this machine has for workers: CPUs and GPUs. Asking torch or Ray would take seconds."""

import json
import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Quota and period of a container (cgroup 2)."""
CPU_QUOTA, CPU_PERIOD = (Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
"""Quota and period of a container (cgroup 1)."""
GPU_DEVICES = (Path("/proc/driver/nvidia/gpus"), Path("/dev/dxg"))
"""The GPUs that the driver of NVIDIA lists, and the GPU of Windows in WSL."""
OVERRIDE = "RAY_OVERRIDE_RESOURCES"
"""The variable that overrides the resources that Ray detects."""


def available_cpus() -> float:
    """Return the CPUs that this process may use; a fraction in a container that has less than one CPU."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(cpus), container_cpus())


def container_cpus() -> float:
    """Return the CPUs that the container of this process may use; infinity without a limit."""
    try:
        quota, period = CPU_MAX.read_text().split() if CPU_MAX.exists() else (CPU_QUOTA.read_text(), CPU_PERIOD.read_text())
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf  # No container, or the quota "max".


def has_gpu() -> bool:
    """Return whether Ray would give GPUs of this machine to workers."""
    if override := os.environ.get(OVERRIDE):
        try:
            return bool(json.loads(override).get("GPU"))
        except (ValueError, AttributeError):
            return False  # Ray's start reports the malformed variable.
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return False
    listed, wsl = GPU_DEVICES
    return wsl.exists() or (listed.is_dir() and any(listed.iterdir()))
