"""The process of the command `imagemill`: signals, what Ray's core says, errors as one line and an exit code."""

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
from imagemill.jobs.streams import lasting
from imagemill.models.card import CheckpointError
from imagemill.pipeline.cluster.connection import ensure_token, wait_for_end
from imagemill.pipeline.cluster.contact import contact
from imagemill.pipeline.errors import ConfigError, Deadline, Failure, Interrupted, RunFailed, StorageError
from imagemill.pipeline.logs import as_json, configure
from imagemill.pipeline.signals import ENDING, again, raisable
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill")


EXTRAS = {
    "skimage": "demo",
    **dict.fromkeys(("bjontegaard", "matplotlib", "tensorboardX", "torchmetrics"), "train"),
}
"""The extra of the package that installs each optional import."""
INTERRUPTED = "interrupted; what was committed stays, the same command goes on from there"


def interrupted(signum: int, frame: FrameType | None) -> None:
    if raisable(frame):
        raise Interrupted
    again(signum)


@contextmanager
def native_noise_into(noise: IO[bytes]) -> Iterator[None]:
    """Ray's C++ core warns of its own doings on descriptor 2, past Python's sys.stderr: into a file.

    Python's own messages go where they went.
    """
    kept, python_stderr = os.dup(2), sys.stderr
    python_stderr.flush()
    os.dup2(noise.fileno(), 2)
    sys.stderr = lasting(kept, python_stderr.encoding)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        sys.stderr = python_stderr


def quiet_command() -> int:
    """`command` without Ray's native noise, which is kept in a file where Ray could not finish; gives the exit code."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        print("imagemill: no folder for temporary files can be written; set TMPDIR to one", file=sys.stderr)
        return ConfigError.exit_code
    # Without a name: a command that is killed leaves nothing behind.
    with tempfile.TemporaryFile() as noise:
        with native_noise_into(noise):
            try:
                code = command()
            except Interrupted:
                # While the end of the command was told.
                code = said(INTERRUPTED, Interrupted.exit_code)
        noise.seek(0)
        # Of a Ray that does not answer the core says no more than that, and again and again.
        if code == RunFailed.exit_code and not contact.lost and (heard := noise.read()):
            with tempfile.NamedTemporaryFile(prefix="imagemill-native-", suffix=".log", delete=False) as kept:
                kept.write(heard)
            print(f"imagemill: what Ray's core said is in {kept.name}", file=sys.stderr)
    return code


def end(code: int) -> NoReturn:
    """End the process at once: the interpreter's own end takes torch and Ray apart for a second, for nobody."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    wait_for_end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def command() -> int:
    """Run the command of sys.argv; gives the exit code. What a person can mend is one line on stderr, no traceback."""
    for number in ENDING:
        # Whoever began it with nohup wants it to outlive the terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupted)
    try:
        configure(sys.stderr)
        ensure_token()
        code = app(standalone_mode=True)
        return int(code or 0)
    except SystemExit as e:
        return int(e.code or 0) if not isinstance(e.code, str) else 1
    except (Failure, CheckpointError) as e:
        return said(str(e), e.exit_code)
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        words = f"this command needs {package}, which is not installed. Run: pip install 'imagemill[{EXTRAS[package]}]'"
        return said(words, ConfigError.exit_code)
    except STORE_FAILURES as e:
        return said(reason(e), StorageError.exit_code)
    except Deadline:
        words = "stopped at the deadline; what was committed stays, the next night goes on from there"
        return said(words, Deadline.exit_code)
    except Interrupted:
        return said(INTERRUPTED, Interrupted.exit_code)


def said(words: str, code: int) -> int:
    """Say in one line how the command ended; gives the code back."""
    if as_json():
        log.error("%s", words, extra={"exit_code": code})
    else:
        print(f"imagemill: {words}", file=sys.stderr)
    return code
