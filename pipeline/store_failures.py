"""Interpret errors of storage clients, retry requests, and check the received bytes."""

import base64
import errno
import hashlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from imagemill.pipeline.pauses import BUSY, Refusals, host_of, pause, record_answer, retry_after

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger("imagemill.storage")
DAMAGED_REQUEST = ("BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch")
"""Codes of S3 for requests that were damaged or cut off in transit; their status is 400."""
Answer = TypeVar("Answer")


def store_failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the exceptions that storage clients raise, and `others`.

    Python evaluates the expression after `except` only when an exception arrives. By then, the client that raised it has
    been imported. So a command without S3 imports no client.
    """
    return *others, OSError, *imported_classes("botocore.exceptions.BotoCoreError", "aiohttp.ClientError")


def imported_classes(*names: str) -> tuple[type[Exception], ...]:
    """Return exception classes by their dotted names, without those of modules that are not imported."""
    modules = ((sys.modules.get(module), name) for module, _, name in (full.rpartition(".") for full in names))
    # Another thread may be importing the module.
    return tuple(getattr(module, name) for module, name in modules if hasattr(module, name))


def reason(error: BaseException) -> str:
    """Return an error as one line: its class and message. For an assertion, the file and line replace the class."""
    kind, text = type(error).__name__, " ".join(str(error).split())[:300]
    if isinstance(error, AssertionError):
        place = traceback.extract_tb(error.__traceback__)[-1:]
        kind = "a check failed" + "".join(f" in {os.path.basename(f.filename)}, line {f.lineno}" for f in place)
    return f"{kind}: {text}" if text else kind


def class_of(error: BaseException) -> str:
    """Return the error class of a reject for an unexpected error."""
    return "FailedCheck" if isinstance(error, AssertionError) else type(error).__name__


def refusal(error: BaseException) -> tuple[int, str]:
    """Return (HTTP status, code) of the store's response behind an error; (0, "") without a response."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, str(answer.get("Error", {}).get("Code", ""))


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later: after a lost connection, damage in transit, or a busy server."""
    status, code = refusal(error)
    if status:
        return status in (408, 409, 429) or status >= 500 or code in DAMAGED_REQUEST
    final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
    clients = ("botocore.exceptions.HTTPClientError", "botocore.parsers.ResponseParserError", "aiohttp.ClientError")
    return isinstance(error, (OSError, *imported_classes(*clients))) and not isinstance(error, final)


def is_damage(error: BaseException) -> bool:
    """Return whether a reader of Parquet, CSV or JSON met wrong bytes, as opposed to a store that did not deliver them."""
    # An OSError of pyarrow itself has no errno; those of disks and stores have one.
    return isinstance(error, (UnicodeError, *imported_classes("pyarrow.ArrowException"))) or (
        type(error) is OSError and error.errno is None
    )


def is_unwritable(error: BaseException) -> bool:
    """Return whether later writes will fail for the same reason: a full or read-only disk, or a missing permission."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or isinstance(error, PermissionError) or refusal(error)[0] == 507


def call_with_retries(request: Callable[[], Answer], damage: tuple[type[Exception], ...] = ()) -> Answer:
    """Return the answer to a request to S3; try four times within seconds, in addition to the client's own retries."""
    from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

    tries = Retrying(
        stop=stop_after_attempt(4),
        wait=wait_exponential_jitter(initial=0.5, max=5),
        retry=retry_if_exception(is_transient) | retry_if_exception_type(damage),
        before_sleep=log_retry,
        reraise=True,
    )
    return tries(request)


def log_retry(state: "RetryCallState") -> None:
    """Log why a request to a store failed and when it is tried again."""
    error = state.outcome.exception() if state.outcome else None
    if error and state.next_action:
        log.info("a request to the store failed: %s. Trying again in %.1f s", reason(error), state.next_action.sleep)


def busy_pause(response: Any, request_dict: dict[str, Any], **_: Any) -> float | None:
    """Return the seconds after which botocore repeats a request that a busy server refused; None lets botocore decide.

    This is a handler of botocore's event `needs-retry`; botocore itself ignores Retry-After.

    Args:
        response: (HTTP response, parsed answer), or None.
        request_dict: the request. Its context lasts until botocore no longer repeats the request.
    """
    if response is None:
        return None
    http = response[0]
    host = host_of(http.url)
    if http.status_code not in BUSY:
        record_answer(host)
        return None
    asked_s = retry_after(http.headers)
    refusals = request_dict["context"].setdefault("imagemill_refusals", Refusals())
    if asked_s is None or (seconds := pause(host, asked_s, refusals)) is None:
        return None
    log.info("%s is busy (HTTP %d). Trying again in %.1f s", host, http.status_code, seconds)
    return seconds


def content_md5(data: bytes) -> str:
    """Return the Content-MD5 header, by which the store checks the received bytes."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def check_length(path: str, data: bytes, answer: dict[str, Any]) -> None:
    """Check that as many bytes were received as the response announced.

    Raises:
        OSError: when the numbers differ.
    """
    if len(data) != answer["ContentLength"]:
        raise OSError(errno.EIO, f"{len(data)} of {answer['ContentLength']} bytes were received", path)
