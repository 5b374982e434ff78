"""A Ray to run on: one of our own in this process, or a cluster that exists."""

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, RunFailed


def ensure_token() -> None:
    """Token authentication, said in so many words, with a token that only its owner reads (Ray's own is made 0644).

    Ray looks at these variables once, when it is imported: call this before. Later it does nothing.
    """
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    token = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or token.exists():
        return
    fresh = secrets.token_hex(32)
    try:
        token.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(fresh)
    except FileExistsError:
        return  # another process was a moment earlier
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = fresh  # no home that can be written: a token for this process and its children


STARTS = 3
"""Times that a Ray of our own is started: on a machine that is loaded to the brim its processes may be late."""
ROOT = Path(__file__).parent.parent
# glibc hands large blocks back to the kernel and faults them in again for every image: keeping them made the
# models 2 to 2.5 times faster (measured; see DECISIONS.md). Niceness 15 is Ray's default for workers.
WORKER_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@contextmanager
def connected(address: str | None, num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of a `with`. A Ray that this process already has is used and left as it is.

    A Ray of our own has no dashboard. Its ports still listen on all interfaces.
    """
    ensure_token()
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    for key, value in WORKER_ENV.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        # An existing cluster has no installation of ours: it gets the packages as its working directory.
        excludes = ["/.git", "/.venv", "/tests", "/docs", "/demo", ".pytest_cache"]
        options |= {
            "address": address,
            "runtime_env": {"working_dir": str(ROOT), "excludes": excludes, "env_vars": WORKER_ENV},
        }
    else:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
    try:
        with signals_wait():
            start_ray(address, options)
        yield
    finally:
        ray.shutdown()


def start_ray(address: str | None, options: dict[str, Any]) -> None:
    """Raises: ConfigError when what is asked for cannot be; RunFailed when Ray was late again and again."""
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(**options)
            return
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
            raise ConfigError(f"Ray at {address or 'this machine'}: {' '.join(str(e).split())[:300]}") from None
        except Exception as e:  # noqa: BLE001 - Ray raises a bare one when a process of its own is not there in 30 s
            ray.shutdown()
            if not left:
                raise RunFailed(f"Ray did not start: {' '.join(str(e).split())[:300]}") from None


@contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C, SIGTERM and the alarm of a deadline come to their handlers when the `with` is over.

    An exception in the middle of Ray's start leaves half a Ray, which hangs. Ray puts a handler of its own in the place of
    SIGTERM's, which prints a crash report and ends the process before anything can be put in order: it is not kept.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    for number in handlers:
        signal.signal(number, lambda signum, frame: waiting.append(signum))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        for missed in dict.fromkeys(waiting):
            signal.raise_signal(missed)
