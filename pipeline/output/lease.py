"""One writer for an OUTPUT: numbered claims that are written once, a heartbeat, and the number as a fence."""

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import OutputHeld, StorageError
from pipeline.storage import Store
from pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.lease")
FOLDER = "runs/lease"
CLAIM = re.compile(r"\d{8,}\.json")
BEAT_SECONDS = 10.0
LIFETIME_SECONDS = 60.0


def process_start(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since boot; None when there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # The first thread of a killed process is a zombie while others still hold its files.
    return None if state == "Z" and int(fields[16]) <= 1 else fields[18]


def this_machine() -> str:
    """Where a number of a process means the same process: a boot of a machine, and of a container there."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = boot.exists() and space.exists()
    return f"{socket.gethostname()}/{boot.read_text().strip()}/{os.readlink(space)}" if known else socket.gethostname()


def claim_path(fence: int, kind: str = "json") -> str:
    return f"{FOLDER}/{fence:08d}.{kind}"


def read_json(output: Store, path: str) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(output.read(path))
        return content
    except (FileNotFoundError, ValueError):
        return None


def newest_fence(output: Store) -> int:
    """The highest fence that was ever claimed, 0 without any. Raises: StorageError."""
    names = (entry.path.rpartition("/")[2] for entry in output.entries(FOLDER))
    return max((int(name.removesuffix(".json")) for name in names if CLAIM.fullmatch(name)), default=0)


def newest_claim(output: Store, fence: int) -> int:
    """`newest_fence`, for one who works under `fence`.

    An actor that outlived its driver must not write behind the back of the next holder. Raises: OutputHeld; StorageError.
    """
    if (newest := newest_fence(output)) > fence:
        raise OutputHeld(f"{output.url}: another run took it")
    return newest


@dataclass(frozen=True)
class Holder:
    who: str
    silent: float
    """Seconds since it was heard of."""


def holder_of(output: Store, fence: int) -> Holder | None:
    """Who works on OUTPUT under `fence`, the newest; None when it released, died or fell silent. Raises: as `Store.read`."""
    if not fence or output.exists(claim_path(fence, "released")):
        return None
    try:
        claim = json.loads(output.read(claim_path(fence)))
    except FileNotFoundError:
        return Holder("runs that take it at this moment", 0.0)
    except ValueError:
        return None  # claims appear whole: this one was lost with the power of its machine
    if claim.get("machine") == this_machine() and process_start(claim["pid"]) != claim["started"]:
        return None
    silent = time.time() - (read_json(output, claim_path(fence, "beat")) or claim)["at"]
    if silent >= LIFETIME_SECONDS:
        return None
    return Holder(f"process {claim['pid']} on {claim['machine'].split('/')[0]}", silent)


class Lease:
    """`with Lease(output) as lease:` holds OUTPUT; `lease.fence` rises with each holder.

    A holder is gone when it released, when its process on this machine is dead, or when it has not been heard for
    LIFETIME_SECONDS.

    Raises: OutputHeld when another holder is alive; StorageError when OUTPUT cannot be written.
    """

    def __init__(self, output: Store) -> None:
        self.output = output
        self.fence = 0
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lease")

    @property
    def claim(self) -> str:
        """The path of what says that this holder has OUTPUT."""
        return claim_path(self.fence)

    def rise(self, above: int) -> None:
        """Take a number above that of a row: the folder of claims was lost, and rows of older runs must stay the older ones.

        Raises: OutputHeld, StorageError.
        """
        if above < self.fence:
            return
        log.warning("%s: its claims (%s) were lost; the numbers of runs go on from %d", self.output.url, FOLDER, above)
        claim = self.output.read(self.claim)
        # Before the claim: the thread that renews it must not take it for another run's.
        self.fence = above + 1
        if not self.output.create(self.claim, claim):
            raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")

    def check(self) -> None:
        """Raises: OutputHeld when another run took OUTPUT while this one was not heard of."""
        if newest_fence(self.output) != self.fence:
            raise OutputHeld(f"{self.output.url}: another run took it while this one was not heard of")

    def __enter__(self) -> "Lease":
        try:
            held = newest_fence(self.output)
            if holder := holder_of(self.output, held):
                raise OutputHeld(
                    f"{self.output.url}: another run holds it ({holder.who}). "
                    f"Wait for its end; a dead one loses it in {LIFETIME_SECONDS - holder.silent:.0f} s"
                )
            self.fence = held + 1
            claim = {
                "token": self._token,
                "machine": this_machine(),
                "pid": os.getpid(),
                "started": process_start(os.getpid()),
                "at": time.time(),
            }
            data = json.dumps(claim).encode()
            if not self.output.create(claim_path(self.fence), data):
                raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")
            if not self.output.local:
                self._read_back(data)
            if newest_fence(self.output) != self.fence:
                # While this process slept others came and went, and cleared the numbers that lie below theirs.
                self.output.delete(claim_path(self.fence))
                raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")
            # Before the sweep, which walks over all of OUTPUT: that may take longer than a claim lives.
            self._beats.start()
            try:
                self._clear(held)
                self.check()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        except STORE_FAILURES as e:
            raise StorageError(f"output {self.output.url}: cannot be written: {reason(e)}") from None
        return self

    def _clear(self, held: int) -> None:
        """Remove what killed writers left, and the claims of those before the one that is followed."""
        self.output.sweep(spare=FOLDER)
        for fence in range(max(1, held - 2), held):
            for kind in ("beat", "released", "json"):
                if self.output.exists(claim_path(fence, kind)):
                    self.output.delete(claim_path(fence, kind))

    def _read_back(self, data: bytes) -> None:
        """A store that lets a second conditional put through keeps nobody apart: say so, and see who wrote last."""
        if self.output.create(claim_path(self.fence), data + b"\n"):
            log.warning(
                "%s ignores conditional puts: two runs that start within a second of each other are told apart only by who "
                "wrote last",
                self.output.url,
            )
            time.sleep(1)
        claim = read_json(self.output, claim_path(self.fence)) or {}
        if claim.get("token") != self._token:
            raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if newest_fence(self.output) > self.fence:
                    return
                self.output.write(claim_path(self.fence, "beat"), json.dumps({"at": time.time()}).encode())
            except (*STORE_FAILURES, StorageError) as e:
                log.warning("lease of %s not renewed: %s", self.output.url, reason(e))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._beats.join(timeout=BEAT_SECONDS)
        try:
            self.output.create(claim_path(self.fence, "released"), b"")
        except STORE_FAILURES as e:
            log.warning("lease of %s not released: %s", self.output.url, reason(e))
