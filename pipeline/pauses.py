"""Decide how long to wait for a busy server: as its Retry-After header asks, within limits that all requests share."""

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BUSY = (429, 503)
"""HTTP statuses of a server that is busy."""
PAUSE_SECONDS = 60.0
"""The longest single wait, even if a server asks for a longer one."""
PATIENCE_SECONDS = 120.0
"""If a host has refused all requests for this long, each request is sent once, and a refusal is final."""
FIRST_SECONDS = 0.5
"""The first wait for a server that does not say how long to wait; later waits double."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait according to the headers of a response; None without a Retry-After header.

    A date is compared with the server's own clock if the response states it.
    """
    lower = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    value = lower.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    try:
        now = parsedate_to_datetime(lower["date"])
    except (KeyError, ValueError):
        now = datetime.now(UTC)
    # A date that ends in "-0000" is parsed without a time zone, but is in UTC.
    aware = [when if when.tzinfo else when.replace(tzinfo=UTC) for when in (until, now)]
    return max(0.0, (aware[0] - aware[1]).total_seconds())


@dataclass
class _Host:
    busy_since: float | None = None
    """Time of the first refusal since the last other answer."""
    quiet_until: float = 0.0


_hosts: dict[str, _Host] = {}
_lock = threading.Lock()


def record_answer(host: str) -> None:
    """Record that a host answered, other than that it is busy."""
    with _lock:
        if state := _hosts.get(host):
            state.busy_since = None


def pause(host: str, asked_s: float | None, attempt: int) -> float | None:
    """Return the seconds to wait before the next request to a busy host; None if it was busy for too long.

    Args:
        host: name of the host.
        asked_s: seconds that the host asked for (retry_after); None doubles the wait with each attempt.
        attempt: number of refusals of this request.
    """
    with _lock:
        state, now = _hosts.setdefault(host, _Host()), time.monotonic()
        state.busy_since = now if state.busy_since is None else state.busy_since
        if now - state.busy_since >= PATIENCE_SECONDS:
            return None
        if asked_s is None:
            return min(FIRST_SECONDS * 2.0 ** min(attempt, 10) * random.uniform(0.5, 1), PAUSE_SECONDS)
        seconds = min(asked_s, PAUSE_SECONDS)
        state.quiet_until = max(state.quiet_until, now + seconds)
        return seconds


def quiet_seconds(host: str) -> float:
    """Return the seconds from now during which a host wants no requests."""
    with _lock:
        state = _hosts.get(host)
        return max(0.0, state.quiet_until - time.monotonic()) if state else 0.0
