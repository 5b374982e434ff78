"""Decide when a signal handler may raise: in the wrong place, an exception does harm or is lost."""

import signal
import threading
from types import FrameType

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a run in an orderly way: Ctrl-C, a service manager's stop, and a closed terminal."""
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
