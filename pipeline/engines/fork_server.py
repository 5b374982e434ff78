"""A process that imports torch once and forks worker processes, which share its memory.

Importing torch takes two seconds and half a gigabyte. A fork takes milliseconds, and its memory is shared until it is
written. The process that starts the server needs no torch. The server ends with that process, or when it is idle.
"""

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imagemill.models.code_permission import permission
from imagemill.pipeline.engines.fork_loop import NUMBER
from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.worker_environment import WORKER_ENV

MESSAGE_BYTES = 1_000_000
"""Bytes of messages that are kept for the user."""
DRAIN_SECONDS = 1.0
"""Time to wait for the last messages of a server that has ended."""
SOURCE_ROOT = str(Path(__file__).parents[3])
"""The folder that holds the package `imagemill`."""


@dataclass
class ForkedProcess:
    """A process that a server forked."""

    connection: Connection
    """Connection to the function that the process runs. Its end is reported when the process ends."""
    pid: int
    _status_socket: socket.socket
    _status: int | None = None

    def exit_status(self, seconds: float = 5.0) -> int | None:
        """Return the exit code of an ended process, or minus the number of the signal that killed it; None if unknown."""
        if self._status is None:
            with suppress(OSError):
                self._status_socket.settimeout(seconds)
                answer = self._status_socket.recv(NUMBER.size, socket.MSG_WAITALL)
                self._status = NUMBER.unpack(answer)[0] if len(answer) == NUMBER.size else None
        return self._status

    def kill(self) -> None:
        """Kill the process at once. `exit_status` waits until it has ended."""
        # The server has reaped a process whose status is known, so that another process may have its id.
        if self.exit_status(0) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the connection. A process that still runs ends."""
        self.connection.close()
        self._status_socket.close()


class ForkServer:
    """The client of a server process, which is started at once and imports its modules in the background."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self._reader = open(reader, "rb", buffering=0)  # noqa: SIM115 - lives as long as the server
        program = "import sys; sys.path[:] = {path}; from imagemill.pipeline.engines.fork_loop import serve; serve({fd})"
        with theirs, open(writer, "wb") as messages:
            # A new process group: signals of a terminal reach the driver alone, which decides what its workers do.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program.format(path=ascii(module_path()), fd=theirs.fileno())],
                env=WORKER_ENV | os.environ,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self._socket = ours
        self._lock = threading.Lock()
        self.messages = b""
        """The end of what the server and its processes wrote to stdout and stderr."""
        self._collector = threading.Thread(target=self._collect_messages, daemon=True, name="fork server")
        self._collector.start()

    def fork(self, function: Callable[..., None], *arguments: Any) -> ForkedProcess:
        """Start a process that calls `function(connection, *arguments)` and then ends.

        Args:
            function: a function of a module; the process imports the module.
            arguments: picklable arguments.

        Raises:
            ConnectionError: when the server has ended.
            OSError: when the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        status, their_status = socket.socketpair()
        with theirs, their_status, self._lock:
            if self._socket.fileno() < 0:
                raise ConnectionError("the server has ended")
            socket.send_fds(self._socket, [b"f"], [theirs.fileno(), their_status.fileno()])
        connection = Connection(ours.detach())
        # The server may have been started long ago, so the process gets the present state of this process.
        connection.send((dict(os.environ), current_folder(), module_path(), permission))
        connection.send((function, arguments))
        answer = status.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < NUMBER.size:
            raise ConnectionError("the server has ended")
        pid = NUMBER.unpack(answer)[0]
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return ForkedProcess(connection, pid, status)

    def end(self) -> None:
        """End the server and its processes at once, also if the server is still importing."""
        with self._lock:
            self._socket.close()
        self._process.kill()

    def last_message(self) -> str:
        """Return the last line that a server wrote before it ended; "" if it wrote none."""
        self._collector.join(DRAIN_SECONDS)
        lines = self.messages.decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _collect_messages(self) -> None:
        """Keep the end of the messages until the server and its processes have ended, and then reap the server.

        A file would need room on a disk, and nobody would remove a server that ended while this process does something else.
        """
        with self._reader:
            while data := self._reader.read(65536):
                self.messages = (self.messages + data)[-MESSAGE_BYTES:]
        self._process.wait()


servers: list[ForkServer] = []
"""The server of this process, if it has one."""
lock = threading.Lock()


def start_server() -> ForkServer:
    """Return the server of this process, and start it if there is none. Its imports go on in the background.

    Raises:
        OSError: when the system has no room for another process.
    """
    with lock:
        if not servers:
            servers.append(ForkServer())
        return servers[0]


def end_server(server: ForkServer | None = None) -> None:
    """End the server of this process, if there is one; or only if it is a given server."""
    with lock:
        if servers and server in (None, servers[0]):
            servers.pop().end()


def forget_server() -> None:
    """Forget the server in a process that was forked: it belongs to the parent."""
    global lock
    lock = threading.Lock()
    servers.clear()


atexit.register(end_server)
os.register_at_fork(after_in_child=forget_server)


def fork(function: Callable[..., None], *arguments: Any) -> ForkedProcess:
    """Start a process that calls `function(connection, *arguments)`, with the server of this process.

    Raises:
        RunFailed: when no process can be started.
    """
    try:
        server = start_server()
        try:
            return server.fork(function, *arguments)
        except ConnectionError:
            # An idle server has ended.
            end_server(server)
            server = start_server()
            return server.fork(function, *arguments)
    except ConnectionError as e:
        message = server.last_message() or str(e)
    except OSError as e:
        message = e.strerror or str(e)
    raise RunFailed(f"worker processes cannot be started: {message}")


def read_worker_messages() -> bytes:
    """Return the end of what the worker processes of this process wrote to stdout and stderr."""
    with lock:
        return servers[0].messages if servers else b""


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
        raise RunFailed(f"a worker process {describe_end(process.exit_status())}") from None
    finally:
        # After a signal, the process may still compute.
        process.kill()
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


def describe_end(status: int | None) -> str:
    """Return how a process ended, as the rest of a sentence."""
    if status is None:
        return "ended"
    if status >= 0:
        return f"ended with exit code {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")


def module_path() -> list[str]:
    """Return where the server searches for modules: as this process does, but not in the current folder.

    A user's folder may hold a file such as `models.py`, which must not replace a module.
    """
    path = [entry for entry in sys.path if isinstance(entry, str) and entry not in ("", current_folder())]
    return path if SOURCE_ROOT in path else [*path, SOURCE_ROOT]


def current_folder() -> str | None:
    """Return the current folder of this process; None if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
