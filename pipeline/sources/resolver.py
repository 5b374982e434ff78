"""Look up the addresses of web servers once, and connect only to addresses that were checked."""

import ipaddress
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

ANSWER_SECONDS = 600.0
"""How long an answer of DNS is used. Servers move rarely, and a failed connection discards the answer at once."""
UNKNOWN_NAMES = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Errors that mean that a name has no address, as opposed to a DNS server that did not answer."""


class AddressRefused(OSError):
    """Raised for a host whose address is private, link-local or otherwise not on the public internet."""


@dataclass(frozen=True)
class _Answer:
    ips: list[str]
    error: socket.gaierror | None
    ends_s: float


_answers: dict[tuple[str, int], _Answer] = {}
_locks: defaultdict[tuple[str, int], threading.Lock] = defaultdict(threading.Lock)
_locks_lock = threading.Lock()


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Threads that ask for the same host at the same time share one lookup.

    Raises:
        socket.gaierror: when the name cannot be resolved. That a name does not exist is remembered like an address.
    """
    with _locks_lock:
        lock = _locks[host, port]
    with lock:
        answer = _answers.get((host, port))
        if answer is None or time.monotonic() > answer.ends_s:
            answer = _look_up(host, port)
            if answer.error is None or answer.error.errno in UNKNOWN_NAMES:
                _answers[host, port] = answer
    if answer.error:
        raise socket.gaierror(*answer.error.args)
    return answer.ips


def _look_up(host: str, port: int) -> _Answer:
    ends_s = time.monotonic() + ANSWER_SECONDS
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as e:
        return _Answer([], e, ends_s)
    return _Answer(list(dict.fromkeys(str(address[0]) for *_, address in found)), None, ends_s)


def connect(
    address: tuple[str, int],
    timeout: float | None = None,
    source_address: tuple[str, int] | None = None,
    *,
    public_only: bool,
) -> socket.socket:
    """Connect like `socket.create_connection`, by the remembered addresses of the host.

    Each connection checks the addresses that it connects to, whether they are remembered or new. A name that resolves to a
    public address first and to a private one later therefore gains nothing.

    Args:
        address: host and port.
        timeout: seconds to wait for each address.
        source_address: host and port to connect from.
        public_only: whether to refuse a host that has an address that is not public.

    Raises:
        AddressRefused: when such a host is refused.
        OSError: when the host cannot be resolved or no address accepts the connection.
    """
    host, port = address
    ips = resolve(host, port)
    private = [ip for ip in ips if not ipaddress.ip_address(ip.partition("%")[0]).is_global]
    if public_only and private:
        raise AddressRefused(f"{host} is {private[0]}, which is not a public address. source.http: any allows it")
    error: OSError = socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
    for ip in ips:
        try:
            return socket.create_connection((ip, port), timeout, source_address)
        except OSError as e:
            error = e
    # The server may have moved, so the next connection asks DNS again.
    _answers.pop((host, port), None)
    raise error
