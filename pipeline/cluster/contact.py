"""Whether Ray still answers: calls to Ray's core have no end when its control store (GCS) cannot be reached."""

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
"""After so long without an answer a run ends; Ray's core ends the whole process after a minute or more, without a word."""
CLEANUP_SECONDS = 5.0
"""What is asked of Ray at the end of a run has so long."""
LOOK_SECONDS = 0.2
Result = TypeVar("Result")


class ContactLost(RunFailed):
    """Ray does not answer any more. What was begun on it in this process never ends."""


class Contact:
    """When Ray last answered this process. Once contact is lost it stays so: Ray's core in this process is of no use."""

    def __init__(self) -> None:
        self.lost = False
        self.heard()

    def heard(self) -> None:
        """Ray answered."""
        self._last = time.monotonic()

    def check_silence(self) -> None:
        """Raises: ContactLost when Ray, which is asked again and again, has not answered for SILENCE_SECONDS."""
        self.lost = self.lost or time.monotonic() - self._last > SILENCE_SECONDS
        self.check()

    def check(self) -> None:
        """Raises: ContactLost when contact was lost before."""
        if self.lost:
            raise ContactLost(
                f"Ray does not answer, for {SILENCE_SECONDS:.0f} s now: its head ended, or this machine's network or "
                "address changed. What was committed stays; run the same command again"
            )


contact = Contact()
"""With the Ray of this process."""


def begin(call: Callable[[], Result]) -> Future[Result]:
    """Do `call` in another thread, which the end of the process does not wait for."""
    ending: Future[Result] = Future()

    def body() -> None:
        try:
            ending.set_result(call())
        except BaseException as e:  # noqa: BLE001 - it is raised again where the result is asked for
            ending.set_exception(e)

    threading.Thread(target=body, daemon=True, name="Ray").start()
    return ending


def while_answering(call: Callable[[], Result]) -> Result:
    """Do `call` in another thread for as long as Ray answers; others must tell `contact` when it does.

    Signals come to their handlers meanwhile. Raises: ContactLost; what `call` raises.
    """
    contact.heard()
    ending = begin(call)
    while not ending.done():
        wait([ending], LOOK_SECONDS)
        contact.check_silence()
    return ending.result()


def answered(call: Callable[[], Result]) -> Result:
    """What Ray answers to one question. Raises: ContactLost when it does not; what `call` raises."""
    ending = begin(call)
    wait([ending], SILENCE_SECONDS)
    if not ending.done():
        contact.lost = True
        contact.check()
    return ending.result()


def clean_up(call: Callable[[], Any], seconds: float = CLEANUP_SECONDS) -> None:
    """Ask something of Ray that may fail, as long as Ray answers: what happened before matters more."""
    if contact.lost:
        return
    ending = begin(call)
    wait([ending], seconds)
    if not ending.done():
        contact.lost = True
        log.debug("Ray does not answer")
        return
    with suppress(Exception):
        ending.result()
