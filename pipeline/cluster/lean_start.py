"""Start a private Ray with only the processes that a run needs, and let nothing wait longer than necessary.

`ray.init` starts a dashboard, an autoscaler, a log monitor and two agents as Python processes, partly one after another, and
looks once a second whether its node is up. A private Ray serves one program on one machine and uses none of these processes,
but no option leaves them out. Ray is pinned to a version (pyproject.toml), and a test lists the processes of a private Ray.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

PRELOADED_MODULES = ("imagemill.pipeline.block_processor", "imagemill.pipeline.sink", "ray.data")
"""Modules that a worker process imports while it waits for its work. The first one imports torch."""
LOOK_SECONDS = 0.02
"""Interval at which the start looks for the node."""
NODE_SECONDS = 25.0
"""Time limit for that look. After it, Ray itself looks for the rest of its 30 seconds."""
PLACEHOLDER = "import os, time\nraylet = os.getppid()\nwhile os.getppid() == raylet:\n    time.sleep(1)"
"""Program of a process that stands in for an agent: Ray's node requires agents, and ends if one of them ends."""
PLACEHOLDER_COMMAND = f"'{sys.executable}' -I -S -c '{PLACEHOLDER}'"
NO_PORT = -1
"""Port number that means to Ray that an agent does not serve."""


def system_config(workers: int | None) -> dict[str, Any]:
    """Return the settings of a private Ray.

    Args:
        workers: number of worker processes that start together with Ray; None if the program starts other actors.
    """
    # Nobody can read metrics, because the agent that would serve them does not run.
    settings: dict[str, Any] = {"enable_metrics_collection": False}
    if workers is None:
        return settings
    # By default, worker processes start after the driver has connected, and the driver waits for them.
    return settings | {
        "enable_worker_prestart": True,
        "prestart_worker_first_driver": False,
        "preload_python_modules": list(PRELOADED_MODULES),
    }


@contextmanager
def lean_start(workers: int | None) -> Iterator[None]:
    """Let a `ray.init` in the `with` block start few processes.

    Args:
        workers: number of worker processes that start together with Ray. Tasks and actors cannot have a runtime environment
            then. None for a Ray with all agents that a program such as Ray Train needs.
    """
    from ray._private import parameter, ray_constants, services, utils

    start_process, get_node = services.start_ray_process, services.get_node

    def start_few(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_RAYLET and workers is not None:
            command = without_agents(command, workers)
        return start_process(command, process_type, *args, **options)

    with ExitStack() as stack:
        for owner, name, value in (
            # A private Ray has no autoscaler, and its logs stay in files.
            (parameter, "RayParams", partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)),
            (services, "start_api_server", lambda *args, **options: ("", None)),
            # Ray takes this installation for one without the extra `default`, whose agent serves nothing.
            (utils, "get_dashboard_dependency_error", lambda: ImportError("a private Ray has no dashboard")),
            (services, "start_ray_process", start_few),
            (services, "get_node", lambda address, node: get_node(address, wait_for_node(address, node))),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def without_agents(command: list[str], workers: int) -> list[str]:
    """Return the command that starts Ray's node (the raylet) with placeholders for its agents.

    The node waits for the files in which its agents store their ports, so this function writes the files.

    Args:
        command: the command, as Ray builds it.
        workers: number of worker processes that start together with the node.
    """
    core = import_module("ray._raylet")
    arguments = dict(argument.partition("=")[::2] for argument in command)
    for name in ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN", "RUNTIME_ENV_AGENT"):
        core.persist_port(arguments["--session_dir"], arguments["--node_id"], getattr(core, f"{name}_PORT_NAME"), NO_PORT)
    replaced = {
        "--num_prestart_python_workers": str(workers),
        "--dashboard_agent_command": PLACEHOLDER_COMMAND,
        "--runtime_env_agent_command": PLACEHOLDER_COMMAND,
    }
    rest = [argument for argument in command if argument.partition("=")[0] not in replaced]
    return [*rest, *(f"{name}={value}" for name, value in replaced.items())]


def wait_for_node(address: str, node_id: str) -> str:
    """Wait until a node has registered, for at most NODE_SECONDS, and return its id.

    Args:
        address: address of Ray's control store.
        node_id: id of the node, which this process has started.
    """
    from ray._private.services import _get_gcs_client_options
    from ray._private.state import GlobalState

    state = GlobalState()
    state._initialize_global_state(_get_gcs_client_options(address))
    deadline = time.monotonic() + NODE_SECONDS
    while not any(node["NodeID"] == node_id for node in state.node_table()) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return node_id


def is_own_ray() -> bool:
    """Return whether this process started the Ray that it is connected to."""
    from ray._private.worker import global_worker

    return bool(global_worker.node and global_worker.node.is_head())
