"""What the clients of stores raise: what it means, whether to ask again, and whether bytes came as they were sent."""

import base64
import errno
import hashlib
import logging
import os
import traceback
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import pyarrow as pa
from botocore.exceptions import BotoCoreError, HTTPClientError
from botocore.parsers import ResponseParserError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from imagemill.pipeline.pauses import BUSY, answered, pause, retry_after

log = logging.getLogger("imagemill.storage")
STORE_FAILURES = (OSError, BotoCoreError, aiohttp.ClientError)
"""What the clients of stores raise."""
MENDABLE = ("BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch")
"""What S3 answers with status 400 when a request was damaged or cut off on its way."""
Answer = TypeVar("Answer")


def reason(error: BaseException) -> str:
    """One line for a person: what kind of failure, and what the library said.

    An assertion has no kind that says anything: its place stands for it.
    """
    kind, text = type(error).__name__, " ".join(str(error).split())[:300]
    if isinstance(error, AssertionError):
        place = traceback.extract_tb(error.__traceback__)[-1:]
        kind = "a check failed" + "".join(f" in {os.path.basename(f.filename)}, line {f.lineno}" for f in place)
    return f"{kind}: {text}" if text else kind


def class_of(error: BaseException) -> str:
    """Return the error class of a reject that an unexpected error made."""
    return "FailedCheck" if isinstance(error, AssertionError) else type(error).__name__


def refusal(error: BaseException) -> tuple[int, str]:
    """(HTTP status, code) of a store's answer that stands behind an error; (0, "") when it was none."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, str(answer.get("Error", {}).get("Code", ""))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment: yes after a break of the line, damage, or a busy server."""
    status, code = refusal(error)
    if status:
        return status in (408, 409, 429) or status >= 500 or code in MENDABLE
    final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
    lost = (OSError, HTTPClientError, ResponseParserError, aiohttp.ClientError)
    return isinstance(error, lost) and not isinstance(error, final)


def is_damage(error: BaseException) -> bool:
    """Whether a reader of Parquet, CSV or JSON met bytes that are wrong; not that a disk or a store did not give them."""
    # An OSError of pyarrow itself, as for a page, has no number; a disk's or a store's has one.
    return isinstance(error, pa.ArrowException | UnicodeError) or (type(error) is OSError and error.errno is None)


def is_unwritable(error: BaseException) -> bool:
    """Whether what failed a write will fail the next ones too: a full or read-only disk, a right that was taken away."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or isinstance(error, PermissionError) or refusal(error)[0] == 507


def patiently(request: Callable[[], Answer], damage: tuple[type[Exception], ...] = ()) -> Answer:
    """The answer to a request of S3; four tries in some seconds, each of which is the client's own several."""
    tries = Retrying(
        stop=stop_after_attempt(4),
        wait=wait_exponential_jitter(initial=0.5, max=5),
        retry=retry_if_exception(is_transient) | retry_if_exception_type(damage),
        before_sleep=log_retry,
        reraise=True,
    )
    return tries(request)


def log_retry(state: RetryCallState) -> None:
    """Log why a request to a store failed and when it is tried again."""
    error = state.outcome.exception() if state.outcome else None
    if error and state.next_action:
        log.info("a request to the store failed: %s. Trying again in %.1f s", reason(error), state.next_action.sleep)


def busy_pause(response: Any, attempts: int, **_: Any) -> float | None:
    """Return the seconds after which botocore repeats a request that a busy server refused, None where it decides itself.

    A handler of botocore's event `needs-retry`, which knows no Retry-After.

    Args: response: what came, as (HTTP response, parsed answer), or None.
    """
    if response is None:
        return None
    http = response[0]
    host = urlsplit(http.url).netloc
    if http.status_code not in BUSY:
        answered(host)
        return None
    asked = retry_after(http.headers)
    if asked is None or (seconds := pause(host, asked, attempts)) is None:
        return None
    log.info("%s is busy (HTTP %d): asked again after %.1f s", host, http.status_code, seconds)
    return seconds


def content_md5(data: bytes) -> str:
    """What tells the store whether it got what was sent."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def check_length(path: str, data: bytes, answer: dict[str, Any]) -> None:
    """Raises: OSError when fewer bytes came than were announced."""
    if len(data) != answer["ContentLength"]:
        raise OSError(errno.EIO, f"{len(data)} of {answer['ContentLength']} bytes came", path)
