"""Images by http(s) URL, for manifests: one that was let in must not reach into the network that the workers stand in."""

import ipaddress
import socket
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

WEB = ("http", "https")
TIMEOUT_SECONDS = 30.0


class AddressRefused(OSError):
    """A host whose address is private, link-local or otherwise not of the open Internet."""


def public_connection(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
    """As socket.create_connection, to the address that was checked: a name that resolves otherwise later gains nothing.

    Raises: AddressRefused.
    """
    host, port = address
    found = [place[0] for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    inner = [str(ip) for ip in found if not ipaddress.ip_address(str(ip).partition("%")[0]).is_global]
    if inner:
        raise AddressRefused(f"{host} is {inner[0]}, no public address; source.http: any lets it in")
    return socket.create_connection((str(found[0]), port), *args, **kwargs)


class PublicHTTP(HTTPConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = public_connection


class PublicHTTPS(HTTPSConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = public_connection


class PublicHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(PublicHTTP, request)


class PublicTLSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(PublicHTTPS, request)


def fetch(url: str, max_bytes: int, public_only: bool) -> bytes:
    """The body at a URL; redirects are followed, each under the same rule. No proxy of the environment is used.

    Raises: FileNotFoundError for 404 and 410; OSError (AddressRefused is one) otherwise, and for a body over `max_bytes`.
    """
    handlers: list[Any] = [urllib.request.ProxyHandler({})]
    if public_only:
        handlers += [PublicHandler(), PublicTLSHandler()]
    opener = urllib.request.build_opener(*handlers)
    opener.addheaders = [("User-Agent", "imagemill")]
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            body: bytes = answer.read(max_bytes + 1)
    except urllib.error.HTTPError as e:
        if e.code in (404, 410):
            raise FileNotFoundError(f"{url}: {e.code}") from None
        raise OSError(f"{url}: {e.code} {e.reason}") from None
    except urllib.error.URLError as e:
        if isinstance(e.reason, AddressRefused):
            raise e.reason from None
        raise OSError(f"{url}: {e.reason}") from None
    if len(body) > max_bytes:
        raise OSError(f"{url}: more than {max_bytes / 1e6:.0f} MB")
    return body
