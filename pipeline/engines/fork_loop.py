"""The main function of the fork server: import modules, fork a process for each request, and report how processes end."""

import ctypes
import errno
import gc
import importlib
import os
import selectors
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from imagemill.models.code_permission import permit_code
from imagemill.pipeline.without_pandas import leave_out_pandas

PRELOADED = ("imagemill.pipeline.worker", "imagemill.pipeline.block_processor", "imagemill.pipeline.sink")
"""Modules that the server imports before it forks."""
IDLE_SECONDS = 120.0
"""Time without a process after which a server ends. The next request starts another server."""
NUMBER = struct.Struct("!q")
"""Format of the numbers that the server sends about a process: its id, or minus an errno; then its exit status."""
PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that names the signal for a process whose parent has ended."""
OOM_SCORE = 600
"""Raises the chance that a system without memory kills a worker, which is replaced, instead of another program."""


def serve(descriptor: int) -> NoReturn:
    """Import the modules, then fork a process for each request, until the driver has ended or no process is needed.

    Args:
        descriptor: file descriptor of the socket of the driver.
    """
    for name in PRELOADED:
        importlib.import_module(name)
    leave_out_pandas()
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
            server = os.getpid()
            try:
                pid = os.fork()
            except OSError as e:
                pid = -(e.errno or errno.EAGAIN)
            if not pid:
                end_with_parent(server)
                run_child(connection, status, [selector, driver, wakeup, wakeup_end, *statuses.values()])
            os.close(connection)
            status_socket = socket.socket(fileno=status)
            with suppress(OSError):
                status_socket.send(NUMBER.pack(pid))
            if pid > 0:
                statuses[pid] = status_socket


def reap(statuses: dict[int, socket.socket]) -> None:
    """Report the exit statuses of ended processes, and forget the processes."""
    for pid in list(statuses):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with statuses.pop(pid) as sock, suppress(OSError):
                sock.send(NUMBER.pack(os.waitstatus_to_exitcode(status)))


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends. Only Linux can; elsewhere the process ends with its connection.

    A process in native code, or one that is stopped, does not notice the end of its connection.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


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
        environment, folder, sys.path[:], permission = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        if folder:
            with suppress(OSError):
                os.chdir(folder)
        if permission.is_given:
            permit_code(permission.folder)
        function, arguments = connection.recv()
        function(connection, *arguments)
        code = 0
    except (EOFError, BrokenPipeError):
        pass  # The driver no longer needs the process.
    except BaseException:  # noqa: BLE001 - the process ends, and its messages say why
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
