"""Standard streams that outlast their reader: closed ones, a pipe whose reader ended, a terminal that went away."""

import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""Nobody reads any more: the end of a pipe (`| head -1`) was closed, or a terminal."""


class Lasting(io.FileIO):
    """A file whose writes go nowhere once nobody reads: what a command does must not end with who watches."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as e:
            # Where errors are told there is no place to tell of one.
            if e.errno not in GONE and self.fileno() == 1:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def lasting(descriptor: int, encoding: str) -> TextIO:
    """A stream on a descriptor, which writes what its encoding lacks as \\xNN."""
    raw = io.BufferedWriter(Lasting(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)


def lasting_streams() -> None:
    """Open the standard descriptors that are closed, before other files take their numbers, and make the streams last."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(nowhere)
    # Python has no stream for a descriptor that was closed.
    sys.stdout = lasting(1, sys.stdout.encoding if sys.stdout else "utf-8")
    sys.stderr = lasting(2, sys.stderr.encoding if sys.stderr else "utf-8")
