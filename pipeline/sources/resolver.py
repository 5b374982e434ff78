"""Look up the addresses of web servers once, and connect only to addresses that were checked."""

import ipaddress
import socket
import threading
import time
from dataclasses import dataclass, field

ANSWER_SECONDS = 600.0
"""How long an answer of DNS is used. Servers move rarely, and a failed connection discards the answer at once."""
UNKNOWN_NAMES = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Errors that mean that a name has no address, as opposed to a DNS server that did not answer."""


class AddressRefused(OSError):
    """Raised for a host whose address is private, link-local or otherwise not on the public internet."""


@dataclass
class _Lookup:
    """A lookup of a host. The first thread that holds the lock asks DNS; the others get its answer."""

    ends_s: float
    """Time until which the answer is used."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ips: list[str] | None = None
    error: socket.gaierror | None = None

    def answer(self, host: str, port: int) -> list[str]:
        """Return the addresses of the host, or raise the error of DNS."""
        with self.lock:
            if self.ips is None and self.error is None:
                try:
                    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                    self.ips = list(dict.fromkeys(str(address[0]) for *_, address in found))
                except socket.gaierror as e:
                    self.error = e
        if self.error:
            raise socket.gaierror(*self.error.args)
        return self.ips or []


_lookups: dict[tuple[str, int], _Lookup] = {}
"""Lookups of the last ANSWER_SECONDS, the oldest first."""
_lock = threading.Lock()


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Threads that ask for the same host at the same time share one lookup.

    Raises:
        socket.gaierror: when the name cannot be resolved. That a name does not exist is remembered like an address.
    """
    with _lock:
        now = time.monotonic()
        while _lookups and now > next(iter(_lookups.values())).ends_s:
            del _lookups[next(iter(_lookups))]
        lookup = _lookups.setdefault((host, port), _Lookup(now + ANSWER_SECONDS))
    try:
        return lookup.answer(host, port)
    except socket.gaierror as e:
        if e.errno not in UNKNOWN_NAMES:
            _forget(host, port)
        raise


def _forget(host: str, port: int) -> None:
    """Let the next connection to a host ask DNS again."""
    with _lock:
        _lookups.pop((host, port), None)


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
    _forget(host, port)
    raise error
