"""Run one command of `imagemill` as a process: signals, messages of Ray's core, errors as one line, exit codes."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, NoReturn

from imagemill.jobs.cli import app
from imagemill.jobs.streams import open_lasting_stream
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.cluster.connection import ensure_token, wait_for_end
from imagemill.pipeline.cluster.contact import contact
from imagemill.pipeline.engines.fork_server import end_server, read_worker_messages
from imagemill.pipeline.errors import ConfigError, Deadline, Failure, Interrupted, RunFailed, StorageError
from imagemill.pipeline.logs import as_json, configure
from imagemill.pipeline.signals import ENDING_SIGNALS, can_raise, raise_later
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill")
EXTRAS = {
    "skimage": "demo",
    **dict.fromkeys(("bjontegaard", "matplotlib", "tensorboardX", "torchmetrics"), "train"),
}
"""Module of an optional package → the extra of imagemill that installs the package."""
INTERRUPTED = "interrupted. Committed rows are kept; the same command continues from there."
DEADLINE = "stopped at the deadline. Committed rows are kept; the next night continues from there."


def raise_interrupted(signum: int, frame: FrameType | None) -> None:
    """Handle a signal: raise Interrupted, or deliver the signal again if the frame must not be interrupted."""
    if can_raise(frame):
        raise Interrupted
    raise_later(signum)


@contextmanager
def native_stderr_into(file: IO[bytes]) -> Iterator[None]:
    """Redirect what native code writes to descriptor 2 into a file; Python's stderr is not redirected.

    Ray's C++ core writes warnings about its internals to descriptor 2, past `sys.stderr`.
    """
    terminal, python_stderr = os.dup(2), sys.stderr
    python_stderr.flush()
    os.dup2(file.fileno(), 2)
    sys.stderr = open_lasting_stream(terminal, python_stderr.encoding)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        sys.stderr = python_stderr


def run_command() -> int:
    """Run the command of `sys.argv` and return its exit code.

    Messages of Ray's core are hidden. If the workers or Ray failed, the messages go to a file, and stderr names the file.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        print(
            "imagemill: TMPDIR: no folder for temporary files is writable. Set TMPDIR to a writable folder.", file=sys.stderr
        )
        return ConfigError.exit_code
    # The file has no name, so that a killed command leaves no file behind.
    with tempfile.TemporaryFile() as file:
        with native_stderr_into(file):
            try:
                code = call_app()
            except Interrupted:
                # The signal arrived while `call_app` reported how the command ended.
                code = print_ending(INTERRUPTED, Interrupted.exit_code)
        file.seek(0)
        # If Ray stopped answering, the messages only repeat that Ray does not answer.
        if code == RunFailed.exit_code and not contact.lost and (messages := file.read() + read_worker_messages()):
            with tempfile.NamedTemporaryFile(prefix="imagemill-native-", suffix=".log", delete=False) as log_file:
                log_file.write(messages)
            print(f"imagemill: messages of workers and of Ray's core are in {log_file.name}", file=sys.stderr)
    return code


def exit_process(code: int) -> NoReturn:
    """End the process at once. An orderly end of the interpreter would spend a second on unloading torch and Ray."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_server()
    wait_for_end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def call_app() -> int:
    """Call the command line with signal handlers and logging, and return the exit code.

    An error that the user can fix is printed as one line on stderr, without a traceback.
    """
    for number in ENDING_SIGNALS:
        # A command that was started with nohup must outlive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, raise_interrupted)
    try:
        configure(sys.stderr)
        ensure_token()
        return int(app(standalone_mode=True) or 0)
    except SystemExit as e:
        return int(e.code or 0) if not isinstance(e.code, str) else 1
    except (Failure, CheckpointError) as e:
        return print_ending(str(e), e.exit_code)
    except store_failures() as e:
        return print_ending(reason(e), StorageError.exit_code)
    except ModuleNotFoundError as e:
        if e.name not in EXTRAS:
            raise
        install = f"pip install 'imagemill[{EXTRAS[e.name]}]'"
        return print_ending(f"this command needs {e.name}, which is not installed. Run: {install}", ConfigError.exit_code)
    except Deadline:
        return print_ending(DEADLINE, Deadline.exit_code)
    except Interrupted:
        return print_ending(INTERRUPTED, Interrupted.exit_code)


def print_ending(message: str, code: int) -> int:
    """Print in one line on stderr how the command ended, and return its exit code."""
    if as_json():
        log.error("%s", message, extra={"exit_code": code})
    else:
        print(f"imagemill: {message}", file=sys.stderr)
    return code
