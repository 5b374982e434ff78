"""Send the notification of a night to a program and to a webhook, without ever showing a secret."""

import http.client
import logging
import os
import re
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from imagemill.jobs.night_config import NotifyConfig
from imagemill.jobs.notification_formats import FORMATS
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.pauses import PAUSE_SECONDS, retry_after

log = logging.getLogger("imagemill.nightly")
COMMAND_SECONDS = 60
ANSWER_SECONDS = 10
"""How long a webhook may take to answer one request."""
ATTEMPTS = 4
BACKOFF = wait_exponential_jitter(initial=1, max=10)
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
ERROR_CODE = re.compile(rb"[a-z]+(_[a-z]+)+")
"""The body of Slack's refusals, such as channel_not_found. Other bodies are not shown: they may repeat a secret."""


@dataclass(frozen=True)
class Webhook:
    """Where a notification is posted. The URL and the headers may hold secrets, so only `host` may be shown."""

    host: str
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: it would send the headers to another host, and turn a POST into a GET without the notification."""

    def redirect_request(self, *_: Any) -> None:
        """Return None, so that the redirect is an error."""


def resolve_webhook(config: NotifyConfig) -> Webhook | None:
    """Return the webhook of a config with the values of environment variables; None without a webhook.

    Raises:
        ConfigError: if a variable is not set, or the URL or a header is invalid. The message holds no value.
    """
    if config.webhook is None:
        if config.headers:
            raise ConfigError("notify.headers: need notify.webhook, to which they are sent")
        return None
    url = expand_variables("notify.webhook", config.webhook).strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or not re.fullmatch(r"[!-~]+", url):
        raise ConfigError(
            "notify.webhook: must be a URL such as https://HOST/PATH, or ${NAME} with a variable that holds one"
        )
    if "@" in parts.netloc:
        raise ConfigError("notify.webhook: must not hold a user or a password. Write notify.headers: {Authorization: …}")
    headers = {}
    for name, value in config.headers.items():
        headers[name] = expand_variables(f"notify.headers.{name}", value).strip()
        if not HEADER_NAME.fullmatch(name) or not re.fullmatch(r"[\t -~\xa0-\xff]*", headers[name]):
            raise ConfigError(f"notify.headers.{name!r}: the name or the value has characters that HTTP does not allow")
    return Webhook(f"{host}:{port}" if port else host, url, headers)


def expand_variables(key: str, text: str) -> str:
    """Replace each ${NAME} by the value of the environment variable NAME.

    Raises:
        ConfigError: if a variable is not set or empty.
    """
    for name in VARIABLE.findall(text):
        if not os.environ.get(name):
            raise ConfigError(f"{key}: the environment variable {name} is not set")
    return VARIABLE.sub(lambda match: os.environ[match[1]], text)


def send_notification(config: NotifyConfig, webhook: Webhook | None, content: dict[str, Any]) -> list[str]:
    """Send a notification to the command and the webhook.

    A failure is logged as a warning. It changes no exit code, because the work of the night is done.

    Args:
        config: where the notification goes, and in which format.
        webhook: `resolve_webhook(config)`.
        content: `NightSummary.content()`.

    Returns:
        One line for each failure, without secrets.
    """
    write, content_type = FORMATS[config.format]
    body, failures = write(content), []
    if command := config.command:
        run_command = partial(subprocess.run, command, input=body, check=True, timeout=COMMAND_SECONDS)
        failures.append(attempt(f"notify.command ({command[0]})", run_command))
    if webhook:
        failures.append(attempt(f"notify.webhook ({webhook.host})", partial(post, webhook, body, content_type)))
    return [failure for failure in failures if failure]


def attempt(key: str, send: Callable[[], object]) -> str | None:
    """Call a function that sends the notification; log and return why it failed, or return None."""
    try:
        send()
    except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as e:
        failure = f"{key}: the notification was not sent: {describe(e)}"
        log.warning("%s", failure)
        return failure
    return None


def post(webhook: Webhook, body: bytes, content_type: str) -> None:
    """Post a notification; try again after failures that may pass, as long as the receiver asks for, within limits."""
    headers = {"Content-Type": content_type, "User-Agent": "imagemill", **webhook.headers}
    opener = urllib.request.build_opener(NoRedirect)
    attempts = Retrying(
        stop=stop_after_attempt(ATTEMPTS), wait=pause_before_retry, retry=retry_if_exception(may_pass), reraise=True
    )
    attempts(lambda: opener.open(urllib.request.Request(webhook.url, body, headers), timeout=ANSWER_SECONDS).close())


def pause_before_retry(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: those of Retry-After, up to a minute, or twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = retry_after(dict(error.headers)) if isinstance(error, HTTPError) else None
    return float(BACKOFF(state)) if asked_s is None else min(asked_s, PAUSE_SECONDS)


def may_pass(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    cause = error.reason if isinstance(error, URLError) else error
    return isinstance(cause, OSError) and not isinstance(cause, ssl.SSLCertVerificationError)


def describe(error: BaseException) -> str:
    """Return why a notification was not sent, without texts that may hold a URL, a header or an argument."""
    if isinstance(error, HTTPError):
        return describe_status(error)
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no end within {COMMAND_SECONDS} s"
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {ANSWER_SECONDS:g} s"
    if isinstance(cause, http.client.HTTPException) and not isinstance(cause, OSError):
        return f"{type(cause).__name__}: the answer is not HTTP"
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__


def describe_status(error: HTTPError) -> str:
    """Describe a refusal by its status and, for a redirect or a refusal of Slack, what the answer says."""
    # The server's own phrase is not shown: it may repeat a secret.
    status = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".strip()
    if 300 <= error.code < 400:
        return f"{status}. Redirects are not followed. Write the new address into notify.webhook"
    try:
        body = error.read(100)
    except (OSError, http.client.HTTPException):
        body = b""
    return f"{status}: {body.decode()}" if ERROR_CODE.fullmatch(body) else status
