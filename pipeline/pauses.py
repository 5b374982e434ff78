"""Decide how long to wait for a busy server: as its Retry-After header asks, within limits that all requests share."""

import math
import random
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BUSY = (429, 503)
"""HTTP statuses of a server that is busy."""
PAUSE_SECONDS = 60.0
"""The longest single wait, even if a server asks for a longer one."""
PATIENCE_SECONDS = 120.0
"""A refusal is final if the host has refused all requests, or this request, for this long."""
FIRST_SECONDS = 0.5
"""The first wait for a server that does not say how long to wait; later waits double."""
PORTS = {"http": 80, "https": 443}


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
class Refusals:
    """How often and since when busy hosts have refused one request."""

    count: int = 0
    since: float = math.inf
    """Time of the first refusal."""


@dataclass
class _Host:
    busy_since: float | None = None
    """Time of the first refusal since the last other answer."""
    quiet_until: float = 0.0


_hosts: dict[str, _Host] = {}
_lock = threading.Lock()


def host_of(url: str) -> str:
    """Return the host and port of a URL, in lower case and with the default port. Invalid URLs have no host."""
    try:
        parts = urllib.parse.urlsplit(url)
        return f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}" if parts.hostname else ""
    except (KeyError, ValueError):
        return ""


def record_answer(host: str) -> None:
    """Record that a host answered, other than that it is busy."""
    with _lock:
        if state := _hosts.get(host):
            state.busy_since = None


def pause(host: str, asked_s: float | None, refusals: Refusals) -> float | None:
    """Return the seconds to wait before a refused request is sent again; None if it must not be sent again.

    Args:
        host: the host and its port, as `host_of` returns them.
        asked_s: seconds that the host asked for (retry_after); None doubles the wait with each refusal.
        refusals: the earlier refusals of the request. This one is added.
    """
    with _lock:
        state, now = _hosts.setdefault(host, _Host()), time.monotonic()
        state.busy_since = now if state.busy_since is None else state.busy_since
        refusals.count, refusals.since = refusals.count + 1, min(refusals.since, now)
        # Answers to other requests end the host's refusals, but not those of a URL that the host always refuses.
        if now - min(state.busy_since, refusals.since) >= PATIENCE_SECONDS:
            return None
        if asked_s is None:
            return min(FIRST_SECONDS * 2.0 ** min(refusals.count, 10) * random.uniform(0.5, 1), PAUSE_SECONDS)
        seconds = min(asked_s, PAUSE_SECONDS)
        state.quiet_until = max(state.quiet_until, now + seconds)
        return seconds


def quiet_seconds(host: str) -> float:
    """Return the seconds from now during which a host wants no requests."""
    with _lock:
        state = _hosts.get(host)
        return max(0.0, state.quiet_until - time.monotonic()) if state else 0.0
