"""How long a busy server is waited for: as it asks (Retry-After), within bounds, and by all requests of a process."""

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BUSY = (429, 503)
"""HTTP statuses that ask for a later request."""
PAUSE_SECONDS = 60.0
"""The longest single wait, even if a server asks for a longer one."""
PATIENCE_SECONDS = 120.0
"""For a server that answers nothing else: then each request is made once, and its refusal is final for this run."""
FIRST_SECONDS = 0.5


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, by its own clock where it states one; None without a request."""
    lower = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    asked = lower.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    try:
        now = parsedate_to_datetime(lower["date"])
    except (KeyError, ValueError):
        now = datetime.now(UTC)
    # A date in "-0000" comes without a zone, and is one of UTC.
    aware = [when if when.tzinfo else when.replace(tzinfo=UTC) for when in (until, now)]
    return max(0.0, (aware[0] - aware[1]).total_seconds())


@dataclass
class _Host:
    busy_since: float | None = None
    """When the first of the refusals came since which it gave no other answer."""
    quiet_until: float = 0.0


_hosts: dict[str, _Host] = {}
_lock = threading.Lock()


def answered(host: str) -> None:
    """Note that a host gave another answer than that it is busy."""
    with _lock:
        if state := _hosts.get(host):
            state.busy_since = None


def pause(host: str, asked: float | None, attempt: int) -> float | None:
    """Return the seconds until a busy host is to be asked again; None when it was busy for too long.

    Args:
        asked: `retry_after` of its answer; without one the waits double.
        attempt: how often this request was refused.
    """
    with _lock:
        state, now = _hosts.setdefault(host, _Host()), time.monotonic()
        state.busy_since = now if state.busy_since is None else state.busy_since
        if now - state.busy_since >= PATIENCE_SECONDS:
            return None
        if asked is None:
            return min(FIRST_SECONDS * 2.0 ** min(attempt, 10) * random.uniform(0.5, 1), PAUSE_SECONDS)
        seconds = min(asked, PAUSE_SECONDS)
        state.quiet_until = max(state.quiet_until, now + seconds)
        return seconds


def quiet_seconds(host: str) -> float:
    """Return for how long a host asked for no request at all, from now on."""
    with _lock:
        state = _hosts.get(host)
        return max(0.0, state.quiet_until - time.monotonic()) if state else 0.0
