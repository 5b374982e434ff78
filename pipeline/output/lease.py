"""The lease: one writer at a time for an OUTPUT.

Each holder writes a claim with the next number, once, and then a heartbeat. The number is the fencing token: rows and parts
carry it, and a worker whose run lost the lease sees a higher number and stops.
"""

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
from imagemill.pipeline.signals import delay_signals
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.lease")
FOLDER = "runs/lease"
CLAIM = re.compile(r"\d{8,}\.json")
BEAT_SECONDS = 10.0
"""Time between two heartbeats of a holder."""
LIFETIME_SECONDS = 60.0
"""A holder without a heartbeat for this long counts as dead."""
POLL_SECONDS = 1.0
"""Time between two reads of a heartbeat that is watched."""


def process_start_time(pid: object) -> str | None:
    """Return when a process of this machine started, in clock ticks since boot; None if it does not exist."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # The main thread of a killed process is a zombie while other threads still hold its files.
    return None if state == "Z" and int(fields[16]) <= 1 else fields[18]


def machine_id() -> str:
    """Return an id of the scope in which a process number is unique: host, boot and process namespace."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and space.exists()):
        return socket.gethostname()
    return f"{socket.gethostname()}/{boot.read_text().strip()}/{os.readlink(space)}"


def current_times() -> dict[str, float]:
    """Return the time of a heartbeat by two clocks: wall time for people, and the clock that nobody can set."""
    return {"at": time.time(), "monotonic": time.monotonic()}


def claim_path(fencing_token: int, kind: str = "json") -> str:
    """Return the path of a claim; `kind` is json (claim), beat (heartbeat) or released."""
    return f"{FOLDER}/{fencing_token:08d}.{kind}"


def read_if_exists(output: Store, path: str) -> bytes | None:
    """Return the content of a file, or None if it does not exist."""
    try:
        return output.read(path)
    except FileNotFoundError:
        return None


def parse_claim(data: bytes | None) -> dict[str, Any]:
    """Parse a claim or a heartbeat; return an empty dict if it is missing or incomplete."""
    try:
        content = json.loads(data or b"")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def newest_fencing_token(output: Store) -> int:
    """Return the highest fencing token that was claimed; 0 if there is no claim.

    Raises:
        StorageError: when the claims cannot be listed.
    """
    names = (entry.path.rpartition("/")[2] for entry in output.entries(FOLDER))
    return max((int(name.removesuffix(".json")) for name in names if CLAIM.fullmatch(name)), default=0)


def check_newest(output: Store, fencing_token: int) -> int:
    """Return the highest fencing token, and check that it is not above the caller's.

    A worker that outlived its run must not write while the next run holds OUTPUT.

    Raises:
        OutputHeld: when another run took the lease.
        StorageError: when the claims cannot be listed.
    """
    if (newest := newest_fencing_token(output)) > fencing_token:
        raise OutputHeld(f"{output.url}: another run took over this output")
    return newest


@dataclass(frozen=True)
class Holder:
    """A run that claimed an OUTPUT and did not release it."""

    description: str
    """For messages: process and machine."""
    silent_seconds: float | None
    """Seconds since its last heartbeat; None if it runs on another machine, whose clock cannot be compared."""
    signs: tuple[bytes | None, bytes | None] = (None, None)
    """Content of its claim and its heartbeat. The heartbeat changes while the holder is alive."""


def read_holder(output: Store, fencing_token: int) -> Holder | None:
    """Return the run that claimed OUTPUT with the newest fencing token.

    The time in a heartbeat counts only if it comes from this machine's monotonic clock. Other clocks may be wrong by any
    amount.

    Args:
        output: the OUTPUT.
        fencing_token: the newest fencing token; 0 if there is no claim.

    Returns:
        The holder; None if it released OUTPUT, or is known to be dead.
    """
    if not fencing_token or output.exists(claim_path(fencing_token, "released")):
        return None
    signs = read_if_exists(output, claim_path(fencing_token)), read_if_exists(output, claim_path(fencing_token, "beat"))
    if signs[0] is None:
        return Holder("a run that is taking the lease", 0.0)
    claim = parse_claim(signs[0])
    machine, pid = str(claim.get("machine", "")), claim.get("pid")
    description = f"process {pid} on {machine.partition('/')[0]}" if machine else "a run whose claim cannot be read"
    if machine != machine_id():
        return Holder(description, None, signs)
    if process_start_time(pid) != claim.get("started"):
        return None
    beat = parse_claim(signs[1] or signs[0]).get("monotonic")
    # If the machine id has no boot id, the monotonic clock may have restarted since the heartbeat.
    if not isinstance(beat, float) or "/" not in machine or beat > time.monotonic():
        return Holder(description, None, signs)
    silent_seconds = time.monotonic() - beat
    return Holder(description, silent_seconds, signs) if silent_seconds < LIFETIME_SECONDS else None


def find_living_holder(output: Store, fencing_token: int, seconds: float, holder: Holder | None) -> Holder | None:
    """Watch the holder of OUTPUT until its heartbeat changes, for a limited time.

    Args:
        output: the OUTPUT.
        fencing_token: the newest fencing token.
        seconds: maximum time to watch, by the clock of this process.
        holder: what `read_holder` returned.

    Returns:
        The holder that is alive, which may be a newer one; None if the holder is dead.
    """
    if not holder or holder.silent_seconds is not None:
        return holder
    first, end = holder.signs, time.monotonic() + seconds
    while True:
        # Checked before reading, so that the last read happens after the time is over, even if this process was asleep.
        is_over = time.monotonic() >= end
        if newest_fencing_token(output) != fencing_token:
            return Holder("a run that has just taken the lease", 0.0)
        current = read_holder(output, fencing_token)
        if not current or current.silent_seconds is not None:
            return current
        if current.signs != first:
            return Holder(current.description, 0.0, current.signs)
        if is_over:
            return None
        time.sleep(min(POLL_SECONDS, seconds))


class Lease:
    """Holds an OUTPUT: `with Lease(output) as lease:`. `lease.fencing_token` rises with each holder.

    A previous holder is gone if it released the lease, if its process on this machine is dead, or if its heartbeat did not
    change for LIFETIME_SECONDS. A holder on another machine is watched for that long first: its clock may differ by any
    amount, so only a change of the heartbeat shows that it is alive.

    Args:
        output: the OUTPUT to hold.

    Raises:
        OutputHeld: when another holder is alive.
        StorageError: when OUTPUT cannot be written.
    """

    def __init__(self, output: Store) -> None:
        self.output = output
        self.fencing_token = 0
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lease")

    @property
    def claim(self) -> str:
        """The path of this holder's claim."""
        return claim_path(self.fencing_token)

    def raise_above(self, fencing_token: int) -> None:
        """Take a fencing token above that of a row, if the folder of claims was lost. Otherwise do nothing.

        The rows of this run must have a higher fencing token than all existing rows.

        Raises:
            OutputHeld: when another run takes the same token.
            StorageError: when OUTPUT cannot be written.
        """
        if fencing_token < self.fencing_token:
            return
        log.warning(
            "%s: the claims in %s were lost; fencing tokens continue from %d", self.output.url, FOLDER, fencing_token
        )
        # The claim gets the current time, because making the plan may have taken longer than a lease lives.
        claim = json.dumps(parse_claim(self.output.read(self.claim)) | current_times()).encode()
        # Set before the claim is written, so that the heartbeat thread does not take the claim for another run's.
        self.fencing_token = fencing_token + 1
        if not self.output.create(self.claim, claim):
            raise OutputHeld(f"{self.output.url}: another run has just taken this output. Wait for that run to end")

    def check_held(self) -> None:
        """Raise OutputHeld if another run took over OUTPUT because this run sent no heartbeat."""
        if newest_fencing_token(self.output) != self.fencing_token:
            raise OutputHeld(f"{self.output.url}: another run took over this output while this run sent no heartbeat")

    def __enter__(self) -> "Lease":
        try:
            held = newest_fencing_token(self.output)
            self._outwait(held)
            try:
                # A signal between the claim and the heartbeat would leave a claim that nobody releases.
                with delay_signals(once=True):
                    self._claim(held + 1)
                self._clear(held)
                self.check_held()
            except BaseException:
                if self._beats.is_alive():
                    self._release()
                raise
        except store_failures() as e:
            raise StorageError(f"output {self.output.url}: cannot be written: {reason(e)}") from None
        return self

    def _outwait(self, held: int) -> None:
        """Wait until the holder of the claim `held` is gone. Raise OutputHeld if the holder is alive."""
        holder = read_holder(self.output, held)
        if holder and holder.silent_seconds is None:
            message = "%s: %s did not release this output. Waiting up to %.0f s for its heartbeat before taking over"
            log.info(message, self.output.url, holder.description, LIFETIME_SECONDS)
        if living := find_living_holder(self.output, held, LIFETIME_SECONDS, holder):
            raise OutputHeld(
                f"{self.output.url}: another run holds this output ({living.description}). Wait for that run to end, or "
                f"stop it. A dead run loses the output after at most {LIFETIME_SECONDS:.0f} s without a heartbeat"
            )

    def _claim(self, fencing_token: int) -> None:
        """Write the claim and start the heartbeat. Raise OutputHeld if another run was faster."""
        self.fencing_token = fencing_token
        claim = {
            "token": self._token,
            "machine": machine_id(),
            "pid": os.getpid(),
            "started": process_start_time(os.getpid()),
            **current_times(),
        }
        data = json.dumps(claim).encode()
        if not self.output.create(self.claim, data):
            raise OutputHeld(f"{self.output.url}: another run has just taken this output. Wait for that run to end")
        if not self.output.local:
            self._read_back(data)
        if newest_fencing_token(self.output) != self.fencing_token:
            # While this process was asleep, other runs held OUTPUT and removed the claims below theirs.
            self.output.delete(self.claim)
            raise OutputHeld(f"{self.output.url}: another run has just taken this output. Wait for that run to end")
        # The heartbeat starts before the cleanup, because listing all of OUTPUT may take longer than a lease lives.
        self._beats.start()

    def _clear(self, held: int) -> None:
        """Remove temporary files of killed writers, and the claims before the previous one."""
        self.output.sweep(spare=FOLDER)
        for fencing_token in range(max(1, held - 2), held):
            for kind in ("beat", "released", "json"):
                if self.output.exists(claim_path(fencing_token, kind)):
                    self.output.delete(claim_path(fencing_token, kind))

    def _read_back(self, data: bytes) -> None:
        """Check that the store honours conditional puts. If it does not, warn, and check which run wrote the claim last."""
        if self.output.create(claim_path(self.fencing_token), data + b"\n"):
            log.warning(
                "%s ignores conditional puts: of two runs that start within one second, the one that writes last "
                "holds the output",
                self.output.url,
            )
            time.sleep(1)
        claim = parse_claim(read_if_exists(self.output, claim_path(self.fencing_token)))
        if claim.get("token") != self._token:
            raise OutputHeld(f"{self.output.url}: another run has just taken this output. Wait for that run to end")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if newest_fencing_token(self.output) > self.fencing_token:
                    return
                self.output.write(claim_path(self.fencing_token, "beat"), json.dumps(current_times()).encode())
            except store_failures(StorageError) as e:
                log.warning("%s: the heartbeat was not written: %s", self.output.url, reason(e))

    def _release(self) -> None:
        """Stop the heartbeat, and write that OUTPUT is free."""
        self._stop.set()
        self._beats.join(timeout=BEAT_SECONDS)
        try:
            self.output.create(claim_path(self.fencing_token, "released"), b"")
        except store_failures() as e:
            log.warning("%s: the lease was not released: %s", self.output.url, reason(e))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A signal may arrive while a run ends after an earlier one. Without a release, the next run would wait.
        with delay_signals(once=True):
            self._release()
