"""Entry point of the command `imagemill`. It handles signals before it imports the rest, which takes seconds."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from imagemill import __version__

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
COMMANDS_WITH_WORKERS = {
    "colorize",
    "compress",
    "demo",
    "denoise",
    "inpaint",
    "nightly",
    "plan",
    "run",
    "stylize",
    "upscale",
}
"""Commands for which workers begin to import torch at once, while this process imports the rest and lists the input."""
WITHOUT_WORKERS = {"--address", "--engine", "--help"}
"""Options with which a command needs no local workers, or may need none."""


def exit_at_once(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that arrives during the imports, when no work has begun."""
    os.write(2, b"imagemill: interrupted before any work began\n")
    os._exit(INTERRUPTED)


def will_run_locally(arguments: list[str]) -> bool:
    """Return whether a command will most likely need worker processes. A wrong guess costs a process for a second."""
    return (
        bool(COMMANDS_WITH_WORKERS.intersection(arguments[:1]))
        and not WITHOUT_WORKERS.intersection(arguments)
        and not any(name in os.environ for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"))
    )


def main() -> NoReturn:
    """Run the command of `sys.argv`, and end the process with its exit code."""
    # With another encoding, Python would decode file names differently and write other bytes.
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        # The option is needed as well: with -E or -I Python ignores the variable, and this would start over for ever.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for number in SIGNALS:
        # A command that was started with nohup must outlive its terminal.
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
            signal.signal(number, exit_at_once)
    from imagemill.jobs.streams import make_streams_last

    # Before any file is opened, because the first one would get the number of a closed stream.
    make_streams_last()
    if will_run_locally(sys.argv[1:]):
        from imagemill.pipeline.engines.fork_server import start_server

        # An error comes again when the run needs processes.
        with suppress(OSError):
            start_server()
    if sys.argv[1:] == ["--version"]:
        # Without this, the answer would wait for the imports of all commands.
        print(f"imagemill {__version__}")
        sys.exit()
    from imagemill.jobs.process import exit_process, run_command

    exit_process(run_command())


if __name__ == "__main__":
    main()
