"""The entry point of the command `imagemill`: signals and streams first, as the imports of the rest take seconds."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130


def ended(signum: int, frame: FrameType | None) -> None:
    """A signal before there is any work to put in order."""
    os.write(2, b"imagemill: interrupted before anything began\n")
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    # Under another encoding Python would read names of files as other names, and write other bytes.
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        # As an option too: Python does not look at its variables under -E and -I, and this would never end.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for number in SIGNALS:
        # Whoever began it with nohup wants it to outlive the terminal.
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
            signal.signal(number, ended)
    from imagemill.jobs.streams import lasting_streams

    lasting_streams()
    from imagemill.jobs.process import end, quiet_command

    end(quiet_command())


if __name__ == "__main__":
    main()
