"""Fetch images by http(s) URL, for manifests. By default a URL must not reach into the private network of the workers."""

import io
import logging
import socket
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from typing import Any

from imagemill.pipeline.pauses import BUSY, Refusals, host_of, pause, quiet_seconds, record_answer, retry_after
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.sources.host_queue import HostBusy
from imagemill.pipeline.sources.resolver import AddressRefused, connect

log = logging.getLogger("imagemill.web")
TIMEOUT_SECONDS = 30.0
"""Maximum time without a byte from the server."""
RESPONSE_SECONDS = 600.0
"""Maximum time for a whole response."""
CHUNK_BYTES = 1 << 20


class InvalidAddress(OSError):
    """Raised for an invalid URL: a port that is not a number, or a user and password before the host."""


class TooLarge(OSError):
    """Raised for a response body with more bytes than allowed."""


class TimedStream(io.RawIOBase):
    """The bytes that a server sends, for at most RESPONSE_SECONDS. The timeout of a socket restarts with each byte.

    Time between two reads does not count, because a reader may wait for memory.

    Args:
        sock: the socket of the connection.
        raw: the stream that reads from the socket.
    """

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self.sock, self.raw, self.remaining_s = sock, raw, RESPONSE_SECONDS

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer; return the number of bytes."""
        if self.remaining_s <= 0:
            raise TimeoutError(f"the response is not complete after {RESPONSE_SECONDS:.0f} s")
        self.sock.settimeout(min(self.remaining_s, TIMEOUT_SECONDS))
        began_s = time.monotonic()
        try:
            return self.raw.readinto(buffer)
        finally:
            self.remaining_s -= time.monotonic() - began_s

    def close(self) -> None:
        """Close the stream."""
        self.raw.close()
        super().close()


class TimedResponse(HTTPResponse):
    """A response whose body is read through a TimedStream."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(TimedStream(sock, self.fp.detach()))


class Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https URLs, on connections whose responses have a time limit.

    Args:
        public_only: whether to refuse addresses that are not public.
    """

    def __init__(self, public_only: bool) -> None:
        super().__init__()
        self.public_only = public_only
        self.http_request = self.https_request = self.do_request_

    def make_connection(self, kind: type[HTTPConnection], *args: Any, **kwargs: Any) -> Any:
        """Return a connection that applies the time limit and the check of addresses."""
        connection: Any = kind(*args, **kwargs)
        connection.response_class = TimedResponse
        connection._create_connection = partial(connect, public_only=self.public_only)
        return connection

    def http_open(self, request: urllib.request.Request) -> Any:
        """Open an http URL; urllib calls this method by its name."""
        return self.do_open(partial(self.make_connection, HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        """Open an https URL; urllib calls this method by its name."""
        return self.do_open(partial(self.make_connection, HTTPSConnection), request)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without reading their bodies. urllib's handler reads the whole body first, even an endless one."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Close the response, then follow the redirect."""
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def fetch(url: str, max_bytes: int, public_only: bool) -> bytes:
    """Return the body at a URL like `request`, and wait while the server is busy."""
    refusals = Refusals()
    while True:
        time.sleep(quiet_seconds(host_of(url)))
        try:
            return request(url, max_bytes, public_only, refusals)
        except HostBusy as e:
            time.sleep(e.seconds)


def request(
    url: str, max_bytes: int, public_only: bool, refusals: Refusals, take_bytes: Callable[[int], None] = lambda _: None
) -> bytes:
    """Return the body at a URL.

    Redirects are followed, each under the same rules. Proxies from the environment are not used.

    Args:
        url: an http(s) URL.
        max_bytes: maximum size of the body.
        public_only: whether to refuse addresses that are not public.
        refusals: the earlier refusals of this request by a busy server. A further one is added.
        take_bytes: called with the number of bytes of each chunk, before the next one is read.

    Raises:
        HostBusy: when the server is busy and may be asked again, as pauses.py says.
        FileNotFoundError: for HTTP status 404 and 410.
        AddressRefused, InvalidAddress, TooLarge: when trying again cannot help.
        TimeoutError: when the response is not complete after RESPONSE_SECONDS.
        OSError: for other failures, and for a body that was cut off.
    """
    shown = redact_secrets(url)
    # urllib quotes the URLs of redirects in the same way.
    quoted = urllib.parse.quote(url, safe=string.punctuation)
    host = host_of(url)
    try:
        body = request_body(quoted, shown, max_bytes, public_only, take_bytes)
        record_answer(host)
        return body
    except urllib.error.HTTPError as e:
        if e.code not in BUSY:
            record_answer(host)
        elif (seconds := pause(host, retry_after(dict(e.headers)), refusals)) is not None:
            log.info("%s: busy (HTTP %d), trying again after %.1f s", shown, e.code, seconds)
            raise HostBusy(seconds) from None
        if e.code in (404, 410):
            raise FileNotFoundError(f"{shown}: {e.code}") from None
        # The reason names a redirect that was refused.
        raise OSError(f"{shown}: {e.code} {redact_secrets(str(e.reason))}") from None
    except urllib.error.URLError as e:
        if isinstance(e.reason, AddressRefused):
            raise e.reason from None
        raise OSError(f"{shown}: {e.reason}") from None
    except TimeoutError as e:
        raise TimeoutError(f"{shown}: {e}") from None
    except (InvalidURL, ValueError):
        # The message of the error may contain a password that was parsed as a port, so it is not shown.
        raise InvalidAddress(f"{shown}: invalid URL. It must not contain a user and password") from None
    except HTTPException as e:
        raise OSError(f"{shown}: {type(e).__name__} {e}") from None


def request_body(url: str, shown: str, max_bytes: int, public_only: bool, take_bytes: Callable[[int], None]) -> bytes:
    """Return the body at a URL, by one request and its redirects.

    Args:
        url: the quoted URL.
        shown: the URL without secrets, for messages.
        max_bytes: maximum size of the body.
        public_only: whether to refuse addresses that are not public.
        take_bytes: as in `request`.

    Raises:
        AddressRefused, TooLarge, OSError, HTTPException, urllib.error.URLError: as `request` handles them.
    """
    # urllib's default handlers would follow a redirect to ftp, around the check of addresses.
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
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            return read_body(response, shown, max_bytes, take_bytes)
    except urllib.error.HTTPError as e:
        # The connection would stay open as long as the error is referenced.
        e.close()
        raise


def read_body(response: Any, url: str, max_bytes: int, take_bytes: Callable[[int], None]) -> bytes:
    """Read the whole body of an `http.client.HTTPResponse`, and call `take_bytes` after each chunk.

    Raises:
        TooLarge: when the body has more than `max_bytes`.
        OSError, HTTPException: when the body was cut off or cannot be read.
    """
    body = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"{url}: more than {max_bytes / 1e6:.0f} MB")
        take_bytes(len(chunk))
    # http.client takes the end of the connection for the end of the body; `length` is the number of bytes still missing.
    if response.length:
        raise OSError(f"{url}: cut off, {response.length} bytes are missing")
    return bytes(body)
