"""Select the engine of a run."""

import os
import sys

from imagemill.pipeline.cluster.connection import JOB_CONFIG, endings
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.engine import Engine
from imagemill.pipeline.engines.local_engine import LocalEngine
from imagemill.pipeline.engines.ray_engine import RayEngine
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.machine import OVERRIDE, has_gpu

ENGINES: dict[str, type[LocalEngine] | type[RayEngine]] = {"local": LocalEngine, "ray": RayEngine}


def select_engine(config: RunConfig) -> tuple[Engine, str]:
    """Return the engine of a run, and the reason for the selection.

    Raises:
        ConfigError: when the selected engine does not support the config.
    """
    name, reason = choose(config)
    if name == "local":
        if config.address:
            raise ConfigError(f"engine=local: cannot use the cluster at address={config.address}. Omit one of the two")
        if config.pool.gpu:
            raise ConfigError("engine=local: has no GPU workers, which pool.gpu=true asks for. Set engine to ray")
    return ENGINES[name](config), reason


def choose(config: RunConfig) -> tuple[str, str]:
    """Return the name of the engine of a run, and the reason."""
    if config.engine != "auto":
        return config.engine, "chosen by the config"
    gpus = f"{OVERRIDE} names GPUs" if OVERRIDE in os.environ else "this machine has a GPU"
    for is_true, reason in (
        (config.address, f"address {config.address}"),
        (os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS is set"),
        (JOB_CONFIG in os.environ, "inside a submitted Ray job"),
        (is_connected_to_ray(), "this program is connected to Ray"),
        (config.pool.gpu, "pool.gpu is true"),
        (config.pool.gpu is None and has_gpu(), gpus),
    ):
        if is_true:
            return "ray", reason
    return "local", "no cluster and no GPU"


def is_connected_to_ray() -> bool:
    """Return whether this process is connected to a Ray that does not end. Ray is not imported."""
    ray = sys.modules.get("ray")
    return bool(ray and hasattr(ray, "is_initialized") and ray.is_initialized() and not endings)
