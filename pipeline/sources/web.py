"""Images by http(s) URL, for manifests: one that was let in must not reach into the network that the workers stand in."""

import io
import ipaddress
import logging
import re
import socket
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from typing import Any

from imagemill.pipeline.pauses import BUSY, answered, pause, quiet_seconds, retry_after

log = logging.getLogger("imagemill.web")
WEB_SCHEMES = ("http", "https")
USER_INFO = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
SECRET_PARAMETER = re.compile(r"([?&][^=&\s]*(?:sig|token|secret|passw|credential|key)[^=&\s]*=)[^&\s\"'<>]+", re.IGNORECASE)
TIMEOUT_SECONDS = 30.0
"""Between two pieces of an answer."""
RESPONSE_SECONDS = 600.0
"""For all of an answer, from its first byte to its last."""
CHUNK_BYTES = 1 << 20


def redact_secrets(text: str) -> str:
    """Text without what addresses in it may carry: a password before the host, a signature in the query."""
    return SECRET_PARAMETER.sub(r"\1…", USER_INFO.sub("…", text))


class AddressRefused(OSError):
    """A host whose address is private, link-local or otherwise not of the open Internet."""


class InvalidAddress(OSError):
    """What cannot be asked for: a port that is no number, or a user and password before the host."""


class TooLarge(OSError):
    """A body of more bytes than are wanted."""


def connect_public(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
    """As socket.create_connection, to the address that was checked: a name that resolves otherwise later gains nothing.

    Raises: AddressRefused.
    """
    host, port = address
    found = [place[0] for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    inner = [str(ip) for ip in found if not ipaddress.ip_address(str(ip).partition("%")[0]).is_global]
    if inner:
        raise AddressRefused(f"{host} is {inner[0]}, no public address; source.http: any lets it in")
    return socket.create_connection((str(found[0]), port), *args, **kwargs)


class TimedStream(io.RawIOBase):
    """What a server sends, until ANSWER_SECONDS are over: its socket's timeout begins anew with each byte."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self.sock, self.raw, self.end = sock, raw, time.monotonic() + RESPONSE_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not there after {RESPONSE_SECONDS:.0f} s")
        self.sock.settimeout(min(left, TIMEOUT_SECONDS))
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(TimedStream(sock, self.fp.detach()))


class Handler(urllib.request.AbstractHTTPHandler):
    """http and https, by connections whose answers come to an end."""

    def __init__(self, public_only: bool) -> None:
        super().__init__()
        self.public_only = public_only
        self.http_request = self.https_request = self.do_request_

    def connection(self, kind: type[HTTPConnection], *args: Any, **kwargs: Any) -> Any:
        made: Any = kind(*args, **kwargs)
        made.response_class = TimedResponse
        if self.public_only:
            made._create_connection = connect_public
        return made

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(self.connection, HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(self.connection, HTTPSConnection), request)


class Redirects(urllib.request.HTTPRedirectHandler):
    """As urllib's, which reads all of a redirect's body, without an end where it has none, before it goes on."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def fetch(url: str, max_bytes: int, public_only: bool) -> bytes:
    """Return the body at a URL, and ask a busy server again for as long as pauses.py says.

    Redirects are followed, each under the same rule. No proxy of the environment is used.

    Raises: FileNotFoundError for 404 and 410; AddressRefused, NoAddress and TooLarge, which stay as they are; OSError
        otherwise, and for a body that was cut off, or is not there after ANSWER_SECONDS (TimeoutError).
    """
    shown = redact_secrets(url)
    # As urllib does it for redirects.
    asked = urllib.parse.quote(url, safe=string.punctuation)
    attempt = 0
    while True:
        try:
            host = urllib.parse.urlsplit(asked).netloc
            time.sleep(quiet_seconds(host))
            body = request_body(asked, shown, max_bytes, public_only)
            answered(host)
            return body
        except urllib.error.HTTPError as e:
            attempt += 1
            if e.code in BUSY and (seconds := pause(host, retry_after(dict(e.headers)), attempt)) is not None:
                log.info("%s: busy (HTTP %d), asked again after %.1f s", shown, e.code, seconds)
                time.sleep(seconds)
                continue
            if e.code not in BUSY:
                answered(host)
            if e.code in (404, 410):
                raise FileNotFoundError(f"{shown}: {e.code}") from None
            # A redirect that is refused is named.
            raise OSError(f"{shown}: {e.code} {redact_secrets(str(e.reason))}") from None
        except urllib.error.URLError as e:
            if isinstance(e.reason, AddressRefused):
                raise e.reason from None
            raise OSError(f"{shown}: {e.reason}") from None
        except TimeoutError as e:
            raise TimeoutError(f"{shown}: {e}") from None
        except (InvalidURL, ValueError):
            # What they say holds the password that was taken for a port.
            raise InvalidAddress(f"{shown}: no address that can be asked; user and password have no place in one") from None
        except HTTPException as e:
            raise OSError(f"{shown}: {type(e).__name__} {e}") from None


def request_body(url: str, shown: str, max_bytes: int, public_only: bool) -> bytes:
    """Return the body at a URL by one request, and those that it is redirected to.

    Raises: as `body_of`; urllib's errors; AddressRefused.
    """
    # Not urllib's usual handlers: they follow a redirect to ftp, past the check of addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        Handler(public_only),
        urllib.request.UnknownHandler(),
        Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "imagemill")]
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            return read_body(answer, shown, max_bytes)
    except urllib.error.HTTPError as e:
        # Its connection stays open as long as somebody holds the error.
        e.close()
        raise


def read_body(answer: Any, url: str, max_bytes: int) -> bytes:
    """All of an answer (an http.client.HTTPResponse). Raises: TooLarge, OSError, HTTPException."""
    body = bytearray()
    while piece := answer.read1(CHUNK_BYTES):
        body += piece
        if len(body) > max_bytes:
            raise TooLarge(f"{url}: more than {max_bytes / 1e6:.0f} MB")
    # What http.client still waits for; it takes the end of a line for the end of a body.
    if answer.length:
        raise OSError(f"{url}: cut off, {answer.length} bytes are missing")
    return bytes(body)
