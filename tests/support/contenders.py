"""Processes that compete for one lease; half of them die while they hold it.

Usage: `python contenders.py OUTPUT LOCK CLAIMS SEED`.

Each holder also locks the file LOCK, which the kernel unlocks when a process dies: a holder that finds the file locked
prints `overlap`.
Prints how many died, and the fences in the order in which their holders had the file.
"""

import fcntl
import os
import random
import signal
import sys
import time
from pathlib import Path

from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.storage import Store

CONTENDERS = 4


def contend(output: str, lock: str, seed: int) -> None:
    """Take the lease again and again, until this process kills itself."""
    generator = random.Random(seed)
    descriptor = os.open(lock, os.O_RDWR | os.O_APPEND)
    while True:
        try:
            with Lease(Store(output)) as lease:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.write(descriptor, b"overlap\n")
                    continue
                os.write(descriptor, f"{lease.fencing_token}\n".encode())
                time.sleep(generator.random() / 5)
                if generator.random() < 0.5:
                    os.kill(os.getpid(), signal.SIGKILL)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        except (OutputHeld, StorageError):
            time.sleep(generator.random() / 10)


def main(output: str, lock: str, claims: str, seed: str) -> None:
    Path(lock).touch()
    living: set[int] = set()
    started = killed = 0
    while len(held := Path(lock).read_text().split()) < int(claims):
        while len(living) < CONTENDERS:
            started += 1
            pid = os.fork()
            if not pid:
                contend(output, lock, int(seed) + started)
            living.add(pid)
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid:
            living.remove(pid)
            killed += 1
        time.sleep(0.02)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(killed, *held)


if __name__ == "__main__":
    main(*sys.argv[1:])
