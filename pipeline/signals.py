"""Decide when a signal handler may raise, and delay signals: in the wrong place, an exception does harm or is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a run in an orderly way: Ctrl-C, a service manager's stop, and a closed terminal."""
WAITING = (*ENDING_SIGNALS, signal.SIGALRM)
"""Signals that end a run between two steps, including the alarm of a deadline."""
LATER_SECONDS = 0.05
"""Delay after which raise_later raises a signal again."""
IMPORTS = "<frozen importlib"
"""Beginning of the file names of Python's import system in stack frames."""


def can_raise(frame: FrameType | None) -> bool:
    """Return whether a signal handler may raise an exception in this frame.

    A handler must not raise during an import, whose locks would stay taken so that other threads wait forever. Nor may a
    handler raise in a finalizer, where Python prints "Exception ignored" and continues.
    """
    while frame:
        if frame.f_code.co_filename.startswith(IMPORTS) or frame.f_code.co_name == "__del__":
            return False
        frame = frame.f_back
    return True


def raise_later(signum: int) -> None:
    """Raise the same signal a moment later."""
    timer = threading.Timer(LATER_SECONDS, signal.raise_signal, [signum])
    timer.daemon = True
    timer.start()


@contextmanager
def delay_signals(once: bool = False) -> Iterator[list[int]]:
    """Delay Ctrl-C, SIGTERM, SIGHUP and the alarm of a deadline until the end of a `with` block.

    An exception in the middle of Ray's start would leave a partly started Ray, which hangs. Handlers that Ray installs in
    the block are removed: Ray's handler of SIGTERM prints a crash report and ends the process before it can clean up.

    Args:
        once: delay only the first signal of each kind.

    Yields:
        The list of the delayed signals, which grows during the block.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield waiting
        return
    handlers = {number: signal.getsignal(number) for number in WAITING}

    def delay(signum: int, frame: Any) -> None:
        handler = handlers[signal.Signals(signum)]
        if once and signum in waiting and callable(handler):
            handler(signum, frame)
        waiting.append(signum)

    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, delay)
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        for signum in dict.fromkeys(waiting):
            signal.raise_signal(signum)
