"""Connect to Ray: a private Ray of this process, or an existing cluster."""

import gc
import json
import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagemill.pipeline.cluster.contact import clean_up, contact
from imagemill.pipeline.cluster.lean_start import lean_start
from imagemill.pipeline.cluster.own import delete_old_sessions, isolated_start, private_ray_options
from imagemill.pipeline.errors import ConfigError, RunFailed
from imagemill.pipeline.logs import VARIABLE
from imagemill.pipeline.signals import delay_signals
from imagemill.pipeline.worker_environment import WORKER_ENV

log = logging.getLogger("imagemill.run")
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable in which Ray passes a submitted job its configuration."""


def ensure_token() -> None:
    """Require token authentication, with a token file that only its owner can read (Ray would create it with mode 0644).

    Ray reads these variables once, when it is imported. Call this function before that; later calls do nothing.
    """
    if "ray" in sys.modules or JOB_CONFIG in os.environ:
        return  # A submitted job has the token of its cluster.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    fresh = secrets.token_hex(32)
    try:
        token = Path.home() / ".ray" / "auth_token"
        token.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(fresh)
    except FileExistsError:
        return  # An earlier run or another process has created the token.
    except (OSError, RuntimeError):
        # Without a writable home, such as in a pod, the token is only for this process and its children.
        os.environ["RAY_AUTH_TOKEN"] = fresh


endings: list[threading.Thread] = []
"""Threads that shut down a Ray of this process."""


@dataclass
class SharedRay:
    """A Ray that stays connected between two blocks of `connected`."""

    is_wanted: bool = False
    is_started: bool = False
    address: str | None = None


shared_ray = SharedRay()
STARTS = 3
"""Attempts to start a private Ray: on a busy machine its processes may be late."""
SOURCE_ROOT = Path(__file__).parents[3]
"""The folder that holds the package `imagemill`: `src/` of a checkout, which Ray ships to a cluster, or site-packages."""
SHUTDOWN_SECONDS = 30.0
"""Time limit for shutting down Ray, which takes a second or two, longer on a busy machine, and forever without a network."""
RAY_WORKER_ENV = WORKER_ENV | {
    "RAY_worker_niceness": "0",  # 15 by default
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def runtime_env() -> dict[str, Any]:
    """Return the runtime environment of workers on a cluster: variables and, for a checkout, the working directory.

    An installed imagemill must be installed on the nodes as well. The environment of a submitted job is left out, because
    Ray refuses values that are given twice.
    """
    submitted = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    submitted_vars = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    variables = RAY_WORKER_ENV | ({VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {})
    environment: dict[str, Any] = {"env_vars": {k: v for k, v in variables.items() if k not in submitted_vars}}
    ships_checkout = not submitted and (SOURCE_ROOT / ".rayignore").exists()
    return environment | ({"working_dir": str(SOURCE_ROOT)} if ships_checkout else {})


def address_of(address: str | None) -> str | None:
    """Return the address of the cluster from the config or RAY_ADDRESS; None for a private Ray."""
    return address or os.environ.get("RAY_ADDRESS")


@contextmanager
def connected(address: str | None, num_cpus: int | None = None, workers: int | None = None) -> Iterator[None]:
    """Connect to Ray for a `with` block. A Ray that this process is already connected to is used and stays connected.

    A private Ray has no dashboard, and its ports listen on the loopback address only. A thread
    shuts Ray down, which takes a second or more. The next Ray, or the end of the process, waits for that thread.

    Args:
        address: address of a cluster; None uses RAY_ADDRESS, or starts a private Ray.
        num_cpus: CPUs of a private Ray; default: all.
        workers: worker processes that a private Ray starts in advance for the engine; None for other programs (lean_start).

    Raises:
        ConfigError: when the cluster cannot be reached, or the environment is unusable.
        RunFailed: when a private Ray does not start.
    """
    ensure_token()
    import ray

    wait_for_end()
    contact.check()
    address = address_of(address)
    if shared_ray.is_started and shared_ray.address != address:
        shared_ray.is_started = False
        ray.shutdown()
    ends_here = shared_ray.is_started or not ray.is_initialized()
    try:
        if not ray.is_initialized():
            start(address, num_cpus, workers)
        yield
    except BaseException:
        if ends_here:
            # No work may continue after the caller sees the error.
            shared_ray.is_started = False
            clean_up(ray.shutdown, SHUTDOWN_SECONDS)
        raise
    if ends_here and shared_ray.is_wanted:
        shared_ray.is_started, shared_ray.address = True, address
    elif ends_here:
        end_in_thread()


@contextmanager
def share_ray() -> Iterator[None]:
    """Share one Ray between all `connected` blocks of the same address within a `with` block."""
    shared_ray.is_wanted = True
    try:
        yield
    finally:
        shared_ray.is_wanted = False
        if shared_ray.is_started:
            shared_ray.is_started = False
            end_in_thread()


def wait_for_end() -> None:
    """Wait until the former Ray of this process is shut down. Give up on a cluster that no longer answers."""
    while endings:
        endings.pop().join(SHUTDOWN_SECONDS)


def end_in_thread() -> None:
    """Shut Ray down in a thread. wait_for_end waits for that thread."""
    import ray

    # While Ray shuts down, its core aborts the process if Python releases a reference to one of Ray's objects (ray#19115).
    # Freezing hides all existing objects from garbage collection until Ray is shut down.
    gc.collect()
    gc.freeze()

    def end() -> None:
        try:
            ray.shutdown()
        finally:
            gc.unfreeze()

    endings.append(threading.Thread(target=end, daemon=True, name="end of Ray"))
    endings[-1].start()


def start(address: str | None, num_cpus: int | None, workers: int | None) -> None:
    """Start a private Ray, or connect to a cluster. `connected` describes the arguments.

    Raises:
        ConfigError: when the cluster cannot be reached, or the environment is unusable.
        RunFailed: when a private Ray does not start.
    """
    for key, value in RAY_WORKER_ENV.items():
        os.environ.setdefault(key, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # The level is set first, because Ray logs warnings about the machine at its start that do not concern users.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        log.info("connecting to Ray at %s", address)
        with delay_signals(), keep_sigterm_handler():
            start_ray(address, quiet | {"address": address, "runtime_env": runtime_env()})
        return
    options = quiet | private_ray_options(num_cpus, workers)
    log.info("starting Ray on this machine")
    with delay_signals(), keep_sigterm_handler(), isolated_start(), lean_start(workers):
        context = start_ray(None, options)
    delete_old_sessions(Path(context.address_info["session_dir"]))


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Keep this program's handler of SIGTERM during a `ray.init` in the `with` block.

    Ray's own handler ends the program at once, even in the middle of Ray's start, and without this program's clean-up.
    """
    from ray._private import utils

    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler


def start_ray(address: str | None, options: dict[str, Any]) -> Any:
    """Call `ray.init` and return its context. If the processes of a private Ray are late, try several times.

    Raises:
        ConfigError: when a cluster cannot be reached.
        RunFailed: when a private Ray does not start.
    """
    import ray

    for remaining in reversed(range(STARTS)):
        try:
            return ray.init(**options)
        except Exception as e:  # noqa: BLE001 - Ray raises Exception itself, as when a node is not up after 30 s
            message = " ".join(str(e).split())[:300]
            if address:
                raise ConfigError(f"address {address}: cannot connect to Ray: {message}") from None
            ray.shutdown()
            if isinstance(e, OSError | ValueError) and not isinstance(e, TimeoutError | ConnectionError):
                # Another attempt would fail in the same way.
                raise RunFailed(f"Ray did not start on this machine: {message}") from None
            if not remaining:
                problem = "Ray did not start on this machine. Is the machine busy, or short of memory?"
                raise RunFailed(f"{problem} {message}") from None
