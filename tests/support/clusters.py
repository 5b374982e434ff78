"""Ray clusters of several nodes on this machine; each node is a separate `ray start --block` that can be killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.process_states import descendants
from tests.support.servers import DIRECT, free_port

RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Node:
    """One `ray start --block` and its child processes."""

    process: "subprocess.Popen[bytes]"

    def family(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def kill(self) -> None:
        """Kill all processes of the node at once, like a machine that loses power."""
        for pid in reversed(self.family()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@dataclass
class RayCluster:
    """A head node with a dashboard on loopback; `add` starts worker nodes.

    `environment` holds what drivers need to connect.
    """

    token: str | None = None
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")))
    """Folder of Ray's sessions; the path is short because paths of sockets must be short."""
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """Address of Ray; with a loopback address Ray would use the machine's own address anyway."""
        return (self.folder / "ray/ray_current_cluster").read_text().strip()

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def variables(self) -> dict[str, str]:
        """Return the environment of this process, extended for the cluster."""
        left = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if self.token else {"RAY_AUTH_MODE": "disabled"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{left['PATH']}"
        return left | auth | {"PATH": path, "RAY_TMPDIR": str(self.folder), **self.environment}

    def start(self, cpus: int, dashboard: bool = True) -> None:
        """Start the head node and wait until it is up; jobs can be submitted if it has a dashboard."""
        ports = ["--port", str(self.port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard_port)]
        ports += ["--metrics-export-port", str(self.metrics_port), "--include-dashboard", str(dashboard).lower()]
        self._begin("--head", *ports, "--num-cpus", str(cpus), *self.options)
        self.wait_for_nodes()
        if dashboard:
            health = f"{self.dashboard}/api/gcs_healthz"
            self._wait(lambda: not DIRECT.open(health, timeout=5).close(), "no dashboard")

    def add(self, cpus: int, before: Sequence[str] = (), gpus: int = 0) -> Node:
        """Start a worker node, through the command `before` if given; its GPUs exist for Ray only."""
        self._begin("--address", self.address, "--num-cpus", str(cpus), "--num-gpus", str(gpus), before=before)
        return self.nodes[-1]

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are up: Ray's message about --block is the last one of a start."""
        for number in range(len(self.nodes)):
            self._wait(lambda number=number: "--block" in self._log(number), f"no node {number}")

    def _wait(self, ready: Callable[[], bool], complaint: str) -> None:
        for _ in range(6000):
            try:
                if ready():
                    return
            except OSError:
                pass
            if self.nodes[-1].process.poll() is not None:
                break
            time.sleep(0.1)
        pytest.fail(f"{complaint}: {self._log(len(self.nodes) - 1)[-2000:]}")

    def _log(self, number: int) -> str:
        return (self.folder / f"node-{number}.log").read_text()

    def _begin(self, *arguments: str, before: Sequence[str] = ()) -> None:
        # A second node on one machine would take the ports of the first, and then submitting fails because there is no
        # agent.
        common = ["--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port())]
        common += ["--runtime-env-agent-port", str(free_port()), "--object-store-memory", "100000000"]
        common += ["--disable-usage-stats", "--block"]
        # On a busy machine the agent of a node may take more than 15 s to start, and then the node gives up.
        again = 'for _ in 1 2 3 4 5; do "$@" && exit 0; sleep 1; done; exit 1'
        command = [*before, "/bin/sh", "-c", again, "sh", RAY, "start", *arguments, *common]
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            process = subprocess.Popen(command, env=self.variables(), **options)
        self.nodes.append(Node(process))

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def metrics_of(cluster: RayCluster) -> str:
    """Return the text that the metrics port of the head serves."""
    with DIRECT.open(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=30) as answer:
        return answer.read().decode()
