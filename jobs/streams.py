"""Standard streams that survive the end of their reader: a closed pipe, a lost terminal, a closed descriptor."""

import errno
import io
import os
import sys
from typing import Any, TextIO

NO_READER = (errno.EPIPE, errno.EIO)
"""Errors of a write after the reader has gone: the other end of a pipe (`| head -1`), or a terminal."""


class LastingFile(io.FileIO):
    """A file whose writes are discarded once the reader has gone, because that must not end the work of a command."""

    def write(self, data: Any, /) -> int:
        """Write bytes, and return how many were accepted."""
        try:
            return super().write(data)
        except OSError as e:
            # Other errors of stdout, such as a full disk, are raised. Errors of stderr could not be printed anywhere.
            if e.errno not in NO_READER and self.fileno() == 1:
                raise
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.fileno())
            os.close(devnull)
            return len(memoryview(data).cast("B"))


def open_lasting_stream(descriptor: int, encoding: str) -> TextIO:
    r"""Return a text stream on a descriptor that survives its reader.

    Characters that the encoding lacks are written as escapes, such as \xfc.
    """
    raw = io.BufferedWriter(LastingFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)


def make_streams_last() -> None:
    """Replace stdout and stderr by lasting streams, and open standard descriptors that are closed.

    A closed descriptor must be opened first: otherwise the next file gets its number, and messages are written into it.
    """
    while (devnull := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(devnull)
    # Python sets the stream of a closed descriptor to None.
    sys.stdout = open_lasting_stream(1, sys.stdout.encoding if sys.stdout else "utf-8")
    sys.stderr = open_lasting_stream(2, sys.stderr.encoding if sys.stderr else "utf-8")
