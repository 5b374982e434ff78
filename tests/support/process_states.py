"""Look at processes through /proc: whether they run, and which processes they started."""

import time
from collections.abc import Callable
from pathlib import Path


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name of the program, beginning with the state; [] without a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended. A zombie has ended."""
    return stat_fields(pid)[:1] not in ([], ["Z"], ["X"])


def exists(pid: int) -> bool:
    """Return whether a process exists, also as a zombie."""
    return bool(stat_fields(pid))


def descendants(pid: int) -> list[int]:
    """Return the processes below a process; parents come before their children."""
    parents = {int(path.name): stat_fields(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    below = [pid]
    for ancestor in below:
        below += [child for child, fields in parents.items() if fields and int(fields[1]) == ancestor]
    return below[1:]


def parent(pid: int) -> int | None:
    """Return the parent of a process; None without a process."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else None


def command_line(pid: int) -> bytes:
    """Return the command line of a process; b"" without a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Wait until a condition holds, at most for some seconds; return whether it holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
