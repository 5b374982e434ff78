"""Images by http(s) URL, for manifests: one that was let in must not reach into the network that the workers stand in."""

import ipaddress
import re
import socket
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPSConnection, InvalidURL
from typing import Any

WEB = ("http", "https")
USER = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
SIGNED = re.compile(r"([?&][^=&\s]*(?:sig|token|secret|passw|credential|key)[^=&\s]*=)[^&\s\"'<>]+", re.IGNORECASE)
TIMEOUT_SECONDS = 30.0
"""Between two pieces of an answer."""
BODY_SECONDS = 600.0
PIECE_BYTES = 1 << 20


def without_secrets(text: str) -> str:
    """Text without what addresses in it may carry: a password before the host, a signature in the query."""
    return SIGNED.sub(r"\1…", USER.sub("…", text))


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

    Raises: FileNotFoundError for 404 and 410; OSError (AddressRefused is one) otherwise, and for a body that is over
        `max_bytes`, was cut off, or is not there after BODY_SECONDS.
    """
    # Not urllib's usual handlers: they follow a redirect to ftp, past the check of addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        PublicHandler() if public_only else urllib.request.HTTPHandler(),
        PublicTLSHandler() if public_only else urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "imagemill")]
    shown = without_secrets(url)
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            return body_of(answer, shown, max_bytes)
    except urllib.error.HTTPError as e:
        if e.code in (404, 410):
            raise FileNotFoundError(f"{shown}: {e.code}") from None
        # A redirect that is refused is named.
        raise OSError(f"{shown}: {e.code} {without_secrets(str(e.reason))}") from None
    except urllib.error.URLError as e:
        if isinstance(e.reason, AddressRefused):
            raise e.reason from None
        raise OSError(f"{shown}: {e.reason}") from None
    except (InvalidURL, ValueError):
        # What they say holds the password that was taken for a port.
        raise OSError(f"{shown}: no address that can be asked; user and password have no place in one") from None
    except HTTPException as e:
        raise OSError(f"{shown}: {type(e).__name__} {e}") from None


def body_of(answer: Any, url: str, max_bytes: int) -> bytes:
    """All of an answer (an http.client.HTTPResponse). Raises: OSError, HTTPException."""
    body, end = bytearray(), time.monotonic() + BODY_SECONDS
    while piece := answer.read1(PIECE_BYTES):
        body += piece
        if len(body) > max_bytes:
            raise OSError(f"{url}: more than {max_bytes / 1e6:.0f} MB")
        if time.monotonic() > end:
            raise OSError(f"{url}: not there after {BODY_SECONDS:.0f} s")
    # What http.client still waits for; it takes the end of a line for the end of a body.
    if answer.length:
        raise OSError(f"{url}: cut off, {answer.length} bytes are missing")
    return bytes(body)
