"""When a signal may end the work: an exception that its handler raises in the wrong place does harm, or is lost."""

import signal
import threading
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what a service manager sends, and a terminal that was closed: each ends the work in good order."""
LATER_SECONDS = 0.05
IMPORTS = "<frozen importlib"


def raisable(frame: FrameType | None) -> bool:
    """Whether the handler of a signal may raise in this frame.

    Not within an import, whose locks would stay taken, so that other threads wait for theirs for ever; nor in what runs when
    an object goes away, where Python says "Exception ignored" and goes on.
    """
    while frame:
        if frame.f_code.co_filename.startswith(IMPORTS) or frame.f_code.co_name == "__del__":
            return False
        frame = frame.f_back
    return True


def again(signum: int) -> None:
    """The same signal, a moment later."""
    timer = threading.Timer(LATER_SECONDS, signal.raise_signal, [signum])
    timer.daemon = True
    timer.start()
