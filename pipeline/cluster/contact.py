"""Detect that Ray no longer answers: calls to Ray's core never return if its control store (GCS) is unreachable."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

from imagemill.pipeline.errors import RunFailed

log = logging.getLogger("imagemill.run")
SILENCE_SECONDS = 40.0
"""Time without an answer after which a run ends. Ray's core would end the process silently after a minute or more."""
CLEANUP_SECONDS = 5.0
"""Time limit of each clean-up at the end of a run."""
LOOK_SECONDS = 0.2
"""Interval at which while_answering checks the contact."""
Result = TypeVar("Result")


class ContactLost(RunFailed):
    """Ray no longer answers. Calls that this process has begun never return."""


class Contact:
    """When Ray last answered this process. Lost contact stays lost, because Ray's core in this process is then unusable."""

    def __init__(self) -> None:
        self.lost = False
        self.record_answer()

    def record_answer(self) -> None:
        """Record that Ray answered."""
        self._last = time.monotonic()

    def check_silence(self) -> None:
        """Check that Ray, which another thread polls, has answered within SILENCE_SECONDS.

        Raises:
            ContactLost: when Ray has not answered.
        """
        self.lost = self.lost or time.monotonic() - self._last > SILENCE_SECONDS
        self.check()

    def check(self) -> None:
        """Check that contact was not lost before.

        Raises:
            ContactLost: when contact was lost.
        """
        if self.lost:
            raise ContactLost(
                f"Ray has not answered for {SILENCE_SECONDS:.0f} s: its head ended, or this machine's network or address "
                "changed. Committed rows stay. Run the same command again"
            )


contact = Contact()
"""Contact with the Ray of this process."""


def begin(call: Callable[[], Result]) -> Future[Result]:
    """Run `call` in a thread that the end of the process does not wait for."""
    future: Future[Result] = Future()

    def body() -> None:
        try:
            future.set_result(call())
        except BaseException as e:  # noqa: BLE001 - raised again by result()
            future.set_exception(e)

    threading.Thread(target=body, daemon=True, name="Ray").start()
    return future


def while_answering(call: Callable[[], Result]) -> Result:
    """Run `call` in a thread and return its result, as long as Ray answers. Signal handlers run meanwhile.

    Another thread must poll Ray and call `contact.record_answer`.

    Raises:
        ContactLost: when Ray no longer answers.
        Exception: any exception that `call` raises.
    """
    contact.record_answer()
    future = begin(call)
    while not future.done():
        wait([future], LOOK_SECONDS)
        contact.check_silence()
    return future.result()


def wait_for_answer(call: Callable[[], Result]) -> Result:
    """Return the result of a single call to Ray.

    Raises:
        ContactLost: when Ray does not answer.
        Exception: any exception that `call` raises.
    """
    future = begin(call)
    wait([future], SILENCE_SECONDS)
    if not future.done():
        contact.lost = True
        contact.check()
    return future.result()


def clean_up(call: Callable[[], Any], seconds: float = CLEANUP_SECONDS) -> None:
    """Run a call to Ray and ignore its failure. Do nothing if contact is lost."""
    if contact.lost:
        return
    future = begin(call)
    wait([future], seconds)
    if not future.done():
        contact.lost = True
        log.debug("Ray does not answer")
        return
    with suppress(Exception):
        future.result()
