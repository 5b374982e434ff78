"""A process that imports torch once and forks worker processes, which share its memory.

Importing torch takes two seconds and half a gigabyte. A fork takes milliseconds, and its memory is shared until it is
written. The process that starts the server needs no torch. The server ends with that process, or when it is idle.
"""

import gc
import importlib
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NoReturn

from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.worker_environment import WORKER_ENV

PRELOADED = ("imagemill.pipeline.worker", "imagemill.pipeline.block_processor", "imagemill.pipeline.sink")
"""Modules that the server imports before it forks."""
IDLE_SECONDS = 120.0
"""Time without a process after which a server ends. The next request starts another server."""
NUMBER = struct.Struct("!q")
"""Format of the numbers that the server writes about a process: first its id, then its exit status."""
MESSAGE_BYTES = 1_000_000
"""Bytes of messages that are kept for the user."""
OOM_SCORE = 600
"""Raises the chance that a system without memory kills a worker, which is replaced, instead of another program."""
SOURCE_ROOT = str(Path(__file__).parents[3])
"""The folder that holds the package `imagemill`."""


@dataclass
class ForkedProcess:
    """A process that a server forked."""

    connection: Connection
    """Connection to the function that the process runs. Its end is reported when the process ends."""
    pid: int
    _status: socket.socket

    def exit_status(self, seconds: float = 5.0) -> int | None:
        """Return the exit code of an ended process, or minus the number of the signal that killed it; None if unknown."""
        self._status.settimeout(seconds)
        with suppress(OSError):
            answer = self._status.recv(NUMBER.size, socket.MSG_WAITALL)
            if len(answer) == NUMBER.size:
                return int(NUMBER.unpack(answer)[0])
        return None

    def kill(self) -> None:
        """Kill the process at once, and wait until it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.exit_status()
        self.close()

    def close(self) -> None:
        """Close the connection. A process that still runs ends."""
        self.connection.close()
        self._status.close()


class ForkServer:
    """The client of a server process, which is started at once and imports its modules in the background."""

    def __init__(self) -> None:
        self.messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        ours, theirs = socket.socketpair()
        program = "import sys; sys.path[:] = {path}; from imagemill.pipeline.engines.fork_server import serve; serve({fd})"
        with theirs:
            # A new process group: signals of a terminal reach the driver alone, which decides what its workers do.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program.format(path=json.dumps(module_path()), fd=theirs.fileno())],
                env=WORKER_ENV | os.environ,
                stdin=subprocess.DEVNULL,
                stdout=self.messages,
                stderr=self.messages,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self._socket = ours
        self._lock = threading.Lock()

    def fork(self, function: Callable[..., None], *arguments: Any) -> ForkedProcess:
        """Start a process that calls `function(connection, *arguments)` and then ends.

        Args:
            function: a function of a module; the process imports the module.
            arguments: picklable arguments.

        Raises:
            ConnectionError: when the server has ended.
        """
        ours, theirs = socket.socketpair()
        status, their_status = socket.socketpair()
        with theirs, their_status, self._lock:
            socket.send_fds(self._socket, [b"f"], [theirs.fileno(), their_status.fileno()])
        connection = Connection(ours.detach())
        # The server may have been started long ago, so the process gets the present environment and folder.
        connection.send((dict(os.environ), current_folder()))
        connection.send((function, arguments))
        answer = status.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < NUMBER.size:
            raise ConnectionError("the server has ended")
        return ForkedProcess(connection, int(NUMBER.unpack(answer)[0]), status)

    def end(self) -> None:
        """End the server and its processes."""
        self._socket.close()
        self._process.wait()
        self.messages.close()

    def read_messages(self) -> bytes:
        """Return the end of what the server and its processes wrote to stdout and stderr."""
        size = os.fstat(self.messages.fileno()).st_size
        return os.pread(self.messages.fileno(), MESSAGE_BYTES, max(0, size - MESSAGE_BYTES))


servers: list[ForkServer] = []
"""The server of this process, if it has one."""
lock = threading.Lock()


def start_server() -> ForkServer:
    """Return the server of this process, and start it if there is none. Its imports go on in the background."""
    with lock:
        if not servers:
            servers.append(ForkServer())
        return servers[0]


def end_server() -> None:
    """End the server of this process, if there is one."""
    with lock:
        while servers:
            servers.pop().end()


def fork(function: Callable[..., None], *arguments: Any) -> ForkedProcess:
    """Start a process that calls `function(connection, *arguments)`, with the server of this process.

    Raises:
        RunFailed: when no server can be started.
    """
    for _ in range(2):
        server = start_server()
        try:
            return server.fork(function, *arguments)
        except OSError as e:
            # An idle server has ended.
            lines = server.read_messages().decode(errors="replace").split("\n")
            message = next((line.strip() for line in reversed(lines) if line.strip()), str(e))
            end_server()
    raise RunFailed(f"worker processes cannot be started: {message}")


def read_worker_messages() -> bytes:
    """Return the end of what the worker processes of this process wrote to stdout and stderr."""
    with lock:
        return servers[0].read_messages() if servers else b""


def call_in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that has imported torch, and return its result.

    Raises:
        RunFailed: when the process ends without a result.
        Exception: any exception that the function raises.
    """
    process = fork(answer, function, arguments)
    try:
        result, error = process.connection.recv()
    except EOFError:
        raise RunFailed(f"a worker process ended with status {process.exit_status()}") from None
    finally:
        process.close()
    if error is not None:
        raise error
    return result


def answer(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send the result of a function, or its exception, through a connection."""
    try:
        result, error = function(*arguments), None
    except Exception as e:  # noqa: BLE001 - raised again by the caller
        result, error = None, picklable(e)
    connection.send((result, error))


def picklable(error: BaseException) -> BaseException:
    """Return an exception, or a RunFailed with its text if the exception cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - exceptions of libraries may raise anything when they are pickled
        return RunFailed(f"{type(error).__name__}: {error}")
    return error


def module_path() -> list[str]:
    """Return where the server searches for modules: as this process does, but not in the current folder.

    A user's folder may hold a file such as `models.py`, which must not replace a module.
    """
    path = [entry for entry in sys.path if entry and entry != current_folder()]
    return path if SOURCE_ROOT in path else [*path, SOURCE_ROOT]


def current_folder() -> str | None:
    """Return the current folder of this process; None if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def serve(descriptor: int) -> NoReturn:
    """Import the modules, then fork a process for each request, until the driver has ended or no process is needed.

    Args:
        descriptor: file descriptor of the socket of the driver.
    """
    for name in PRELOADED:
        importlib.import_module(name)
    # Garbage collection would write to the objects of the imported modules, and copy their memory into each process.
    gc.collect()
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wakeup, wakeup_end = socket.socketpair()
    for end in (wakeup, wakeup_end):
        end.setblocking(False)
    signal.set_wakeup_fd(wakeup_end.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    driver = socket.socket(fileno=descriptor)
    selector = selectors.DefaultSelector()
    selector.register(driver, selectors.EVENT_READ)
    selector.register(wakeup, selectors.EVENT_READ)
    statuses: dict[int, socket.socket] = {}
    while True:
        ready = selector.select(None if statuses else IDLE_SECONDS)
        if not ready and not statuses:
            os._exit(0)
        with suppress(BlockingIOError):
            wakeup.recv(4096)
        reap(statuses)
        if any(key.fileobj is driver for key, _ in ready):
            request, descriptors, _, _ = socket.recv_fds(driver, 1, 2)
            if not request:
                # The driver has ended, so its workers must not go on.
                for pid in statuses:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                os._exit(0)
            connection, status = descriptors
            pid = os.fork()
            if not pid:
                run_child(connection, status, [selector, driver, wakeup, wakeup_end, *statuses.values()])
            os.close(connection)
            statuses[pid] = socket.socket(fileno=status)
            with suppress(OSError):
                statuses[pid].send(NUMBER.pack(pid))


def reap(statuses: dict[int, socket.socket]) -> None:
    """Report the exit statuses of ended processes, and forget the processes."""
    for pid in list(statuses):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with statuses.pop(pid) as sock, suppress(OSError):
                sock.send(NUMBER.pack(os.waitstatus_to_exitcode(status)))


def run_child(descriptor: int, status: int, inherited: list[Any]) -> NoReturn:
    """Run the requested function in a forked process, and end the process.

    Args:
        descriptor: file descriptor of the connection.
        status: file descriptor of the server's reports about the process.
        inherited: objects of the server that the process must close.
    """
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(status)
        for item in inherited:
            item.close()
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
        connection = Connection(descriptor)
        environment, folder = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        if folder:
            with suppress(OSError):
                os.chdir(folder)
        function, arguments = connection.recv()
        function(connection, *arguments)
        code = 0
    except (EOFError, BrokenPipeError):
        pass  # The driver no longer needs the process.
    except BaseException:  # noqa: BLE001 - the process ends, and its messages say why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
