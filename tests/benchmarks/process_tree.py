"""Measure a command: wall time, CPU and memory of its process and all descendants, also of orphans.

Ray's workers are children of a raylet that does not wait for them. So this process asks the kernel to become the parent of
orphans (PR_SET_CHILD_SUBREAPER), samples all descendants several times a second, and reaps them.
"""

import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 0.2
MEMORY_SHARE = 0.03
"""Largest share of a core for sampling. Reading /proc/PID/smaps_rollup walks all pages, so it is read rarely."""
LINGER_SECONDS = 20.0
PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")
Process = tuple[int, int]
"""(pid, ticks since boot at its start), because pids are reused."""


@dataclass(frozen=True)
class Usage:
    """Time, CPU and memory of a command."""

    code: int
    """Its exit code; -9 if it was killed at the timeout."""
    wall_s: float
    cpu_s: float
    """User and system time of all processes. A process without an account of the kernel counts until its last sample."""
    peak_pss_mb: float
    """Peak of all processes together; shared pages count once."""
    processes: int


def stat_of(pid: int) -> tuple[int, int, int] | None:
    """Return (parent, start, CPU ticks) of a process; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12])


def processes() -> dict[int, tuple[int, int, int]]:
    """Return `stat_of` of all processes, by pid."""
    return {int(name): stat for name in os.listdir("/proc") if name.isdecimal() and (stat := stat_of(int(name)))}


def pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:")), 0.0)


class Tree:
    """Samples of the processes of a command."""

    def __init__(self, root: int, strangers: set[int]) -> None:
        self.root, self.strangers = root, strangers
        self.ticks: dict[Process, int] = {}
        self.reaped_s = 0.0
        self.peak_pss_mb = 0.0
        self._memory_due = 0.0

    def look(self) -> set[int]:
        """Return the living descendants of the root, and orphans, which are children of this process."""
        seen = processes()
        children: dict[int, list[int]] = {}
        for pid, (parent, _, _) in seen.items():
            children.setdefault(parent, []).append(pid)
        alive: set[int] = set()
        waiting = [pid for pid in children.get(os.getpid(), []) if pid not in self.strangers]
        while waiting:
            pid = waiting.pop()
            alive.add(pid)
            waiting += children.get(pid, [])
        for pid in alive:
            _, began, ticks = seen[pid]
            self.ticks[pid, began] = ticks
        return alive

    def weigh(self, alive: set[int]) -> None:
        began = time.monotonic()
        if began < self._memory_due:
            return
        self.peak_pss_mb = max(self.peak_pss_mb, sum(map(pss_mb, alive)))
        now = time.monotonic()
        self._memory_due = now + (now - began) / MEMORY_SHARE

    def reap(self, pid: int) -> int | None:
        """Reap a child and return its exit code; add its CPU time and that of the children it waited for."""
        try:
            done, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if not done:
            return None
        self.reaped_s += usage.ru_utime + usage.ru_stime
        return os.waitstatus_to_exitcode(status)

    @property
    def cpu_s(self) -> float:
        """Return the larger of two CPU times, which may both be incomplete: the kernel's account and the samples."""
        return max(self.reaped_s, sum(self.ticks.values()) / TICKS)


def watched(command: list[str], environment: dict[str, str], log: Path, cwd: Path, timeout_s: float) -> Usage:
    """Run a command to its end. Kill processes that still run 20 seconds later."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    strangers = {
        pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if (stat_of(pid) or (0,))[0] == os.getpid()
    }
    with log.open("wb") as out:
        began = time.monotonic()
        # A Popen object that is dropped reaps its process if that has ended, and the exit code is lost: keep it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=cwd
        )
    root = process.pid
    tree, code, wall_s = Tree(root, strangers), None, 0.0
    while True:
        if code is None:
            wait(root, LOOK_SECONDS)
            code = tree.reap(root)
            wall_s = time.monotonic() - began
        else:
            time.sleep(LOOK_SECONDS)
        alive = tree.look()
        tree.weigh(alive)
        for pid in alive - {root}:
            tree.reap(pid)
        if code is not None and not alive:
            return Usage(code, wall_s, tree.cpu_s, tree.peak_pss_mb, len(tree.ticks))
        if time.monotonic() - began > (timeout_s if code is None else wall_s + LINGER_SECONDS):
            for pid in alive:
                kill(pid)


def wait(pid: int, seconds: float) -> None:
    """Wait until a child ended or the time is over, without reaping the child."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(min(left, 0.01))


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
