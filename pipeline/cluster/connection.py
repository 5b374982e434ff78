"""A Ray to run on: one of our own in this process, or a cluster that exists."""

import gc
import json
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagemill.pipeline.cluster.contact import clean_up, contact
from imagemill.pipeline.cluster.own import apart, own_options, tidy
from imagemill.pipeline.errors import ConfigError, RunFailed
from imagemill.pipeline.logs import VARIABLE
from imagemill.pipeline.signals import ENDING

log = logging.getLogger("imagemill.run")
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a submitted job what it was submitted with."""


def ensure_token() -> None:
    """Token authentication, said in so many words, with a token that only its owner reads (Ray's own is made 0644).

    Ray looks at these variables once, when it is imported: call this before. Later it does nothing.
    """
    if "ray" in sys.modules or JOB_CONFIG in os.environ:
        return  # a submitted job has the cluster's
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
        return  # from before, or another process was a moment earlier
    except (OSError, RuntimeError):
        # No home, as a user without a name has in a pod, or none that can be written: for this process and its children.
        os.environ["RAY_AUTH_TOKEN"] = fresh


endings: list[threading.Thread] = []
"""Of the Ray that this process had."""


@dataclass
class Kept:
    """A Ray that stays between one `connected` and the next."""

    wanted: bool = False
    started: bool = False
    address: str | None = None


kept = Kept()
STARTS = 3
"""Times that a Ray of our own is started: on a machine that is loaded to the brim its processes may be late."""
SOURCE_ROOT = Path(__file__).parents[3]
"""The folder that holds the package `imagemill`: `src/` of a checkout, which Ray ships to a cluster, or site-packages."""
WAITING = (*ENDING, signal.SIGALRM)
"""Signals that end a run between two steps."""
SHUTDOWN_SECONDS = 30.0
"""Ray's end takes a second or two, and on a busy machine more; without a network it would never come."""
# glibc hands large blocks back to the kernel and faults them in again for every image: keeping them made the
# models 2 to 2.5 times faster (measured; see DECISIONS.md). Niceness 15 is Ray's default for workers.
WORKER_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    # What glibc keeps serves Arrow too: an allocator of its own would take more from the kernel.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def runtime_env() -> dict[str, Any]:
    """What processes on a cluster get from here: the environment of our workers, and a checkout as working directory.

    An installed imagemill is expected to be installed on the nodes as well. In a submitted job the job has said it already,
    and Ray refuses whatever is said twice.
    """
    submitted = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    said = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    ours = WORKER_ENV | ({VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {})
    environment: dict[str, Any] = {"env_vars": {k: v for k, v in ours.items() if k not in said}}
    ships_checkout = not submitted and (SOURCE_ROOT / ".rayignore").exists()
    return environment | ({"working_dir": str(SOURCE_ROOT)} if ships_checkout else {})


def address_of(asked: str | None) -> str | None:
    """The cluster to work on; None for a Ray of our own."""
    return asked or os.environ.get("RAY_ADDRESS")


@contextmanager
def connected(address: str | None, num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of a `with`. A Ray that this process already has is used and left as it is.

    A Ray of our own has no dashboard, and all its ports listen on the loopback address alone. Ending Ray takes
    a second or more: it continues in a thread after the `with`, and the next Ray, or the end of the process, waits for it.
    """
    ensure_token()
    import ray

    wait_for_end()
    contact.check()
    address = address_of(address)
    if kept.started and kept.address != address:
        kept.started = False
        ray.shutdown()
    ours = kept.started or not ray.is_initialized()
    try:
        if not ray.is_initialized():
            start(address, num_cpus)
        yield
    except BaseException:
        if ours:
            # Nothing may be at work any more when the error is heard of.
            kept.started = False
            clean_up(ray.shutdown, SHUTDOWN_SECONDS)
        raise
    if ours and kept.wanted:
        kept.started, kept.address = True, address
    elif ours:
        end_beside()


@contextmanager
def one_ray() -> Iterator[None]:
    """The first `connected` within this `with` starts the Ray of those after it, as long as their address is the same."""
    kept.wanted = True
    try:
        yield
    finally:
        kept.wanted = False
        if kept.started:
            kept.started = False
            end_beside()


def wait_for_end() -> None:
    """Wait until the Ray that this process had is gone; a cluster that does not answer any more is left alone."""
    while endings:
        endings.pop().join(SHUTDOWN_SECONDS)


def end_beside() -> None:
    """End Ray in a thread, for the next one or the end of the process to wait for."""
    import ray

    # While Ray ends, its core ends the whole process when Python lets go of a reference to one of its objects (ray#19115).
    # Garbage collection, which may come upon such references in cycles, sees nothing that is there now until Ray is gone.
    gc.collect()
    gc.freeze()

    def end() -> None:
        try:
            ray.shutdown()
        finally:
            gc.unfreeze()

    endings.append(threading.Thread(target=end, daemon=True, name="end of Ray"))
    endings[-1].start()


def start(address: str | None, num_cpus: int | None) -> None:
    """Raises: ConfigError, RunFailed."""
    for key, value in WORKER_ENV.items():
        os.environ.setdefault(key, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Before it is started: Ray warns of what it finds on the machine, and it is not for people.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        log.info("connecting to Ray at %s", address)
        with signals_wait():
            start_ray(address, quiet | {"address": address, "runtime_env": runtime_env()})
        return
    options = quiet | own_options(num_cpus)
    log.info("starting Ray on this machine")
    with signals_wait(), apart():
        context = start_ray(None, options)
    tidy(Path(context.address_info["session_dir"]))


def start_ray(address: str | None, options: dict[str, Any]) -> Any:
    """What `ray.init` gives.

    Raises: ConfigError when what is asked for cannot be; RunFailed when Ray was late again and again.
    """
    import ray

    for left in reversed(range(STARTS)):
        try:
            return ray.init(**options)
        except Exception as e:  # noqa: BLE001 - Ray raises Exception itself, as when a node is not up after 30 s
            said = " ".join(str(e).split())[:300]
            if address:
                raise ConfigError(f"Ray at {address}: {said}") from None
            ray.shutdown()
            if isinstance(e, OSError | ValueError) and not isinstance(e, TimeoutError | ConnectionError):
                # To start it again would end in the same way.
                raise RunFailed(f"Ray did not start on this machine: {said}") from None
            if not left:
                raise RunFailed(f"Ray did not start on this machine; is it short of memory, or busy? {said}") from None


@contextmanager
def signals_wait(once: bool = False) -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM, SIGHUP and the alarm of a deadline come to their handlers after the `with`.

    Gives the signals that wait; with `once` the second of a kind does not. An exception in the middle of Ray's start leaves
    half a Ray, which hangs. Ray puts a handler of its own in the place of SIGTERM's, which prints a crash report and ends
    the process before anything can be put in order: it is not kept.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield waiting
        return
    handlers = {number: signal.getsignal(number) for number in WAITING}

    def keep(signum: int, frame: Any) -> None:
        handler = handlers[signal.Signals(signum)]
        if once and signum in waiting and callable(handler):
            handler(signum, frame)
        waiting.append(signum)

    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, keep)
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        for missed in dict.fromkeys(waiting):
            signal.raise_signal(missed)
