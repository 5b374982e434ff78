"""A Ray of our own on this machine: what it is started with, and the folders that its sessions leave."""

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

from imagemill.pipeline.errors import ConfigError

log = logging.getLogger("imagemill.run")
OURS = "imagemill"
"""A file that marks the folder of a Ray session as ours."""
SESSIONS = 10
"""Whose logs are kept."""
OVERRIDE = "RAY_OVERRIDE_RESOURCES"
"""The variable that tells Ray what a machine has, instead of what Ray finds."""
SHORT_FOLDER = "/tmp"
SOCKET_BYTES = 107
"""The longest path of a Unix socket."""
LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
SESSION_BYTES = 20_000_000
"""What the logs of a session may take; without room for its first files Ray fails minutes later, with other words."""


def own_options(num_cpus: int | None) -> dict[str, Any]:
    """The arguments of `ray.init` for a Ray on this machine. Raises: ConfigError.

    Args: num_cpus: CPUs that Ray may use; what the machine has when absent.
    """
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": num_cpus or whole_cpus(),
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": f"{session_folder()}/ray",
    }


@contextmanager
def apart() -> Iterator[None]:
    """Keep a Ray that starts within the `with` apart: from the network, and from signals that are meant for this process.

    Ray replaces the loopback address by that of the network, which may go away while a run is under way (VPN, Wi-Fi). On
    Windows and macOS Ray keeps the loopback address, and this is how Ray decides that.

    A terminal, and `timeout`, send their signals to the whole process group. Where Ray's processes get them too they end
    first, and Ray's core ends this process before it can put anything in order.
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
    """One CPU where a container has less than one, which Ray would round down to none; None where Ray may decide.

    Ray takes whole CPUs only: a fraction in RAY_OVERRIDE_RESOURCES is rounded in the same way.

    Raises: ConfigError when RAY_OVERRIDE_RESOURCES is not what Ray can read.
    """
    from ray._private.utils import get_num_cpus

    if text := os.environ.get(OVERRIDE):
        try:
            resources = json.loads(text)
        except ValueError:
            resources = None
        if not isinstance(resources, dict) or not all(isinstance(r, int | float) for r in resources.values()):
            raise ConfigError(f'{OVERRIDE} = {text!r}: a JSON object of numbers is expected, like {{"CPU": 2}}')
        if (cpus := resources.get("CPU", 0)) != int(cpus):
            os.environ[OVERRIDE] = json.dumps(resources | {"CPU": max(1, int(cpus))})
    return 1 if get_num_cpus(override_docker_cpu_warning=True, truncate=False) < 1 else None


def session_folder() -> str:
    """The folder for Ray's sessions: RAY_TMPDIR, or that for temporary files, or /tmp where that one's path is too long.

    Raises: ConfigError when Ray could not use it.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    asked = os.environ.get(name)
    folder = asked if asked and name == "RAY_TMPDIR" else tempfile.gettempdir()
    if asked and not os.path.isdir(asked):
        if name == "RAY_TMPDIR":
            raise ConfigError(f"{name} = {asked}: the folder does not exist; make it, or unset {name}")
        log.warning("%s = %s: the folder does not exist; temporary files go to %s", name, asked, folder)
    most = SOCKET_BYTES - len(LONGEST_SOCKET)
    if len(os.fsencode(folder)) > most:
        too_long = f"{name} = {folder}: Ray's sockets need a folder whose path has at most {most} bytes"
        if name == "RAY_TMPDIR" or not os.access(SHORT_FOLDER, os.W_OK):
            raise ConfigError(f"{too_long}; set RAY_TMPDIR to a shorter one")
        log.warning("%s; Ray takes %s", too_long, SHORT_FOLDER)
        name, folder = "RAY_TMPDIR", SHORT_FOLDER
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{name} = {folder}: the folder cannot be written; set {name} to one that can")
    if (free := shutil.disk_usage(folder).free) < SESSION_BYTES:
        left = f"{free / 1e6:.1f} MB are free, and Ray needs {SESSION_BYTES / 1e6:.0f} MB for its logs"
        raise ConfigError(f"{name} = {folder}: {left}; free some, or set {name} to another folder")
    return folder


def tidy(session: Path) -> None:
    """Of what Rays of ours left beside this session's folder, which Ray itself never deletes, keep the newest few."""
    try:
        (session / OURS).touch()
        for mark in sorted(session.parent.glob(f"session_2*/{OURS}"))[:-SESSIONS]:
            driver = mark.parent.name.rpartition("_")[2]
            if not Path("/proc", driver).exists():
                shutil.rmtree(mark.parent, ignore_errors=True)
    except OSError as e:
        log.warning("old sessions in %s stay: %s", session.parent, e.strerror)
