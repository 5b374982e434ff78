"""A private Ray on this machine: its options, and the session folders that remain after its end."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from imagemill.pipeline.cluster.lean_start import system_config
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.machine import OVERRIDE

log = logging.getLogger("imagemill.run")
SESSION_MARK = "imagemill"
"""Name of the file that marks the folder of a Ray session as started by Imagemill."""
SESSIONS = 10
"""Number of sessions whose logs Imagemill keeps."""
SHORT_FOLDER = "/tmp"
"""Folder for sessions if the path of the folder for temporary files is too long."""
SOCKET_BYTES = 107
"""Maximum length of the path of a Unix socket, in bytes."""
LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket that Ray creates in the folder for sessions."""
SESSION_BYTES = 20_000_000
"""Free space that a session needs. Without it Ray fails minutes later with a misleading message."""


def private_ray_options(num_cpus: int | None, workers: int | None) -> dict[str, Any]:
    """Return the arguments of `ray.init` for a private Ray on this machine.

    Args:
        num_cpus: CPUs that Ray may use; default: all.
        workers: worker processes that Ray starts in advance for the engine, or None (lean_start).

    Raises:
        ConfigError: when a variable of the environment or the session folder is unusable.
    """
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": num_cpus or whole_cpus(),
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": f"{session_folder()}/ray",
        "_system_config": system_config(workers),
    }


@contextmanager
def isolated_start() -> Iterator[None]:
    """Isolate a Ray that starts in the `with` block from the network and from signals that are meant for this process.

    On Linux, Ray replaces the loopback address by the address of the network, which may disappear during a run (VPN,
    Wi-Fi). If `ENABLE_RAY_CLUSTER` is false, Ray keeps the loopback address.

    Terminals and `timeout` send signals to the whole process group. If Ray's processes received these signals too, they
    would end first, and Ray's core would end this process before the clean-up.
    """
    from ray._private import ray_constants, services

    cluster, popen = ray_constants.ENABLE_RAY_CLUSTER, services.ConsolePopen
    ray_constants.ENABLE_RAY_CLUSTER = False
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, services.ConsolePopen = cluster, popen


def whole_cpus() -> int | None:
    """Return 1 if a container has less than one CPU, which Ray would round down to 0; None if Ray may decide.

    Ray uses whole CPUs only, so this function rounds a fraction in RAY_OVERRIDE_RESOURCES in the same way.

    Raises:
        ConfigError: when RAY_OVERRIDE_RESOURCES is malformed.
    """
    from ray._private.utils import get_num_cpus

    if text := os.environ.get(OVERRIDE):
        try:
            resources = json.loads(text)
        except ValueError:
            resources = None
        if not isinstance(resources, dict) or not all(isinstance(amount, int | float) for amount in resources.values()):
            raise ConfigError(f'{OVERRIDE}={text!r}: must be a JSON object of numbers, such as {{"CPU": 2}}')
        if (cpus := resources.get("CPU", 0)) != int(cpus):
            os.environ[OVERRIDE] = json.dumps(resources | {"CPU": max(1, int(cpus))})
    return 1 if get_num_cpus(override_docker_cpu_warning=True, truncate=False) < 1 else None


def session_folder() -> str:
    """Return the folder for Ray's sessions: RAY_TMPDIR, the folder for temporary files, or /tmp if the path is too long.

    Raises:
        ConfigError: when Ray could not use the folder.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    setting = os.environ.get(name)
    folder = setting if setting and name == "RAY_TMPDIR" else tempfile.gettempdir()
    if setting and not os.path.isdir(setting):
        if name == "RAY_TMPDIR":
            raise ConfigError(f"{name}={setting}: the folder does not exist. Create it or unset {name}")
        log.warning("%s=%s: the folder does not exist. Temporary files go to %s", name, setting, folder)
    max_bytes = SOCKET_BYTES - len(LONGEST_SOCKET)
    if len(os.fsencode(folder)) > max_bytes:
        too_long = f"{name}={folder}: Ray's sockets need a folder whose path has at most {max_bytes} bytes"
        if name == "RAY_TMPDIR" or not os.access(SHORT_FOLDER, os.W_OK):
            raise ConfigError(f"{too_long}. Set RAY_TMPDIR to a shorter path")
        log.warning("%s. Ray uses %s", too_long, SHORT_FOLDER)
        name, folder = "RAY_TMPDIR", SHORT_FOLDER
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{name}={folder}: the folder is not writable. Set {name} to a writable folder")
    if (free := shutil.disk_usage(folder).free) < SESSION_BYTES:
        space = f"{free / 1e6:.1f} MB are free, but Ray needs {SESSION_BYTES / 1e6:.0f} MB for its logs"
        raise ConfigError(f"{name}={folder}: {space}. Free some space, or set {name} to another folder")
    return folder


def delete_old_sessions(session: Path) -> None:
    """Delete all but the newest session folders of imagemill next to `session`; Ray itself never deletes them."""
    try:
        (session / SESSION_MARK).touch()
        for mark in sorted(session.parent.glob(f"session_2*/{SESSION_MARK}"))[:-SESSIONS]:
            driver = mark.parent.name.rpartition("_")[2]
            if not Path("/proc", driver).exists():
                shutil.rmtree(mark.parent, ignore_errors=True)
    except OSError as e:
        log.warning("old Ray sessions in %s were not deleted: %s", session.parent, e.strerror)
