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

from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.lease")
FOLDER = "runs/lease"
CLAIM = re.compile(r"\d{8,}\.json")
BEAT_SECONDS = 10.0
"""Between two heartbeats of a holder."""
LIFETIME_SECONDS = 60.0
"""Of silence, after which a holder counts as dead."""
POLL_SECONDS = 1.0
"""Between two looks at the heartbeat of a holder that is watched."""


def process_start_time(pid: object) -> str | None:
    """When a process of this machine began, in clock ticks since boot; None when there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # The first thread of a killed process is a zombie while others still hold its files.
    return None if state == "Z" and int(fields[16]) <= 1 else fields[18]


def machine_id() -> str:
    """Where a number of a process means the same process: a boot of a machine, and of a container there."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = boot.exists() and space.exists()
    return f"{socket.gethostname()}/{boot.read_text().strip()}/{os.readlink(space)}" if known else socket.gethostname()


def current_times() -> dict[str, float]:
    """The time of a sign of life: for people and older versions, and by the clock that no one sets."""
    return {"at": time.time(), "monotonic": time.monotonic()}


def claim_path(fencing_token: int, kind: str = "json") -> str:
    return f"{FOLDER}/{fencing_token:08d}.{kind}"


def read_if_exists(output: Store, path: str) -> bytes | None:
    """The content of a file of the lease, None where there is none. Raises: as `Store.read`."""
    try:
        return output.read(path)
    except FileNotFoundError:
        return None


def parse_claim(data: bytes | None) -> dict[str, Any]:
    """What a claim or a heartbeat says; nothing where it is missing, or not complete yet."""
    try:
        content = json.loads(data or b"")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def newest_fencing_token(output: Store) -> int:
    """The highest fence that was ever claimed, 0 without any. Raises: StorageError."""
    names = (entry.path.rpartition("/")[2] for entry in output.entries(FOLDER))
    return max((int(name.removesuffix(".json")) for name in names if CLAIM.fullmatch(name)), default=0)


def check_newest(output: Store, fencing_token: int) -> int:
    """`newest_fencing_token`, for one who works under `fencing_token`.

    An actor that outlived its driver must not write behind the back of the next holder. Raises: OutputHeld; StorageError.
    """
    if (newest := newest_fencing_token(output)) > fencing_token:
        raise OutputHeld(f"{output.url}: another run took it")
    return newest


@dataclass(frozen=True)
class Holder:
    """Who claimed an OUTPUT and did not release it."""

    description: str
    silent_seconds: float | None
    """Seconds since its last sign of life; None when its clock is not ours, so that only watching it can tell."""
    signs: tuple[bytes | None, bytes | None] = (None, None)
    """Its claim and its heartbeat; the heartbeat changes while it lives."""


def read_holder(output: Store, fencing_token: int) -> Holder | None:
    """Return who claimed OUTPUT under `fence`, the newest; None when it released, or is known to be dead or silent.

    The time that a heartbeat states counts only where it is this machine's monotonic clock. Other clocks may be wrong by any
    amount.

    Raises: as `Store.read`.
    """
    if not fencing_token or output.exists(claim_path(fencing_token, "released")):
        return None
    signs = read_if_exists(output, claim_path(fencing_token)), read_if_exists(output, claim_path(fencing_token, "beat"))
    if signs[0] is None:
        return Holder("a run that takes it at this moment", 0.0)
    claim = parse_claim(signs[0])
    machine, pid = str(claim.get("machine", "")), claim.get("pid")
    who = f"process {pid} on {machine.partition('/')[0]}" if machine else "a run whose claim cannot be read"
    if machine != machine_id():
        return Holder(who, None, signs)
    if process_start_time(pid) != claim.get("started"):
        return None
    since = parse_claim(signs[1] or signs[0]).get("monotonic")
    # Without a boot in the machine's name its monotonic clock may have begun anew since.
    if not isinstance(since, float) or "/" not in machine or since > time.monotonic():
        return Holder(who, None, signs)
    silent = time.monotonic() - since
    return Holder(who, silent, signs) if silent < LIFETIME_SECONDS else None


def find_living_holder(output: Store, fencing_token: int, seconds: float, holder: Holder | None) -> Holder | None:
    """Watch the holder of `fence` for at most some seconds of our own clock; return who lives, None when nobody does.

    Raises: as `Store.read`; StorageError.
    """
    if not holder or holder.silent_seconds is not None:
        return holder
    first, end = holder.signs, time.monotonic() + seconds
    while True:
        # Asked before the look: the last look comes after the time is over, however long this process slept.
        over = time.monotonic() >= end
        if newest_fencing_token(output) != fencing_token:
            return Holder("a run that has just taken it", 0.0)
        seen = read_holder(output, fencing_token)
        if not seen or seen.silent_seconds is not None:
            return seen
        if seen.signs != first:
            return Holder(seen.description, 0.0, seen.signs)
        if over:
            return None
        time.sleep(min(POLL_SECONDS, seconds))


class Lease:
    """`with Lease(output) as lease:` holds OUTPUT; `lease.fencing_token` rises with each holder.

    A holder is gone when it released, when its process on this machine is dead, or when its heartbeat did not change for
    LIFETIME_SECONDS. A holder on another machine is watched for that long first: its clock may differ from ours by any
    amount, so only a change that we see is a sign of life.

    Raises: OutputHeld when another holder is alive; StorageError when OUTPUT cannot be written.
    """

    def __init__(self, output: Store) -> None:
        self.output = output
        self.fencing_token = 0
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lease")

    @property
    def claim(self) -> str:
        """The path of what says that this holder has OUTPUT."""
        return claim_path(self.fencing_token)

    def raise_above(self, fencing_token: int) -> None:
        """Take a number above that of a row: the folder of claims was lost, and rows of older runs must stay the older ones.

        Raises: OutputHeld, StorageError.
        """
        if fencing_token < self.fencing_token:
            return
        log.warning(
            "%s: its claims (%s) were lost; the numbers of runs go on from %d", self.output.url, FOLDER, fencing_token
        )
        # A claim that is as old as the plan took would pass for a silent one until the next heartbeat.
        claim = json.dumps(parse_claim(self.output.read(self.claim)) | current_times()).encode()
        # Before the claim: the thread that renews it must not take it for another run's.
        self.fencing_token = fencing_token + 1
        if not self.output.create(self.claim, claim):
            raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")

    def check_held(self) -> None:
        """Raises: OutputHeld when another run took OUTPUT while this one was not heard of."""
        if newest_fencing_token(self.output) != self.fencing_token:
            raise OutputHeld(f"{self.output.url}: another run took it while this one was not heard of")

    def __enter__(self) -> "Lease":
        try:
            held = newest_fencing_token(self.output)
            self._outwait(held)
            self.fencing_token = held + 1
            claim = {
                "token": self._token,
                "machine": machine_id(),
                "pid": os.getpid(),
                "started": process_start_time(os.getpid()),
                **current_times(),
            }
            data = json.dumps(claim).encode()
            if not self.output.create(claim_path(self.fencing_token), data):
                raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")
            if not self.output.local:
                self._read_back(data)
            if newest_fencing_token(self.output) != self.fencing_token:
                # While this process slept others came and went, and cleared the numbers that lie below theirs.
                self.output.delete(claim_path(self.fencing_token))
                raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")
            # Before the sweep, which walks over all of OUTPUT: that may take longer than a claim lives.
            self._beats.start()
            try:
                self._clear(held)
                self.check_held()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        except STORE_FAILURES as e:
            raise StorageError(f"output {self.output.url}: cannot be written: {reason(e)}") from None
        return self

    def _outwait(self, held: int) -> None:
        """Return when the holder of the claim `held` is gone. Raises: OutputHeld when it lives."""
        holder = read_holder(self.output, held)
        if holder and holder.silent_seconds is None:
            what = "%s: %s did not release it. Waiting up to %.0f s for a sign of life before this run takes it over"
            log.info(what, self.output.url, holder.description, LIFETIME_SECONDS)
        if living := find_living_holder(self.output, held, LIFETIME_SECONDS, holder):
            raise OutputHeld(
                f"{self.output.url}: another run holds it ({living.description}). Wait for it to end, or stop it: "
                f"a run takes over from a dead one, at the latest after {LIFETIME_SECONDS:.0f} s of silence"
            )

    def _clear(self, held: int) -> None:
        """Remove what killed writers left, and the claims of those before the one that is followed."""
        self.output.sweep(spare=FOLDER)
        for fencing_token in range(max(1, held - 2), held):
            for kind in ("beat", "released", "json"):
                if self.output.exists(claim_path(fencing_token, kind)):
                    self.output.delete(claim_path(fencing_token, kind))

    def _read_back(self, data: bytes) -> None:
        """A store that lets a second conditional put through keeps nobody apart: say so, and see who wrote last."""
        if self.output.create(claim_path(self.fencing_token), data + b"\n"):
            log.warning(
                "%s ignores conditional puts: two runs that start within a second of each other are told apart only by who "
                "wrote last",
                self.output.url,
            )
            time.sleep(1)
        claim = parse_claim(read_if_exists(self.output, claim_path(self.fencing_token)))
        if claim.get("token") != self._token:
            raise OutputHeld(f"{self.output.url}: another run has just taken it. Wait for it to end")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if newest_fencing_token(self.output) > self.fencing_token:
                    return
                self.output.write(claim_path(self.fencing_token, "beat"), json.dumps(current_times()).encode())
            except (*STORE_FAILURES, StorageError) as e:
                log.warning("lease of %s not renewed: %s", self.output.url, reason(e))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._beats.join(timeout=BEAT_SECONDS)
        try:
            self.output.create(claim_path(self.fencing_token, "released"), b"")
        except STORE_FAILURES as e:
            log.warning("lease of %s not released: %s", self.output.url, reason(e))
