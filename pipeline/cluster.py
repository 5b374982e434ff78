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
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        raise ConfigError(f"Ray at {address or 'this machine'}: {' '.join(str(e).split())[:300]}") from None
    except Exception as e:  # noqa: BLE001 - a Ray that did not start in time, on a busy machine, has no type of its own
        raise RunFailed(f"Ray at {address or 'this machine'}: {' '.join(str(e).split())[:300]}") from None
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler prints a crash report and ends the process before anything can be put in order.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()
