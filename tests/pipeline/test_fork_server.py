"""The fork server: what its processes inherit, and that none is left when a server, a process or the driver ends."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagemill.pipeline.engines import fork_server
from imagemill.pipeline.engines.fork_server import call_in_worker, describe_end, end_server, fork, module_path, start_server
from imagemill.pipeline.errors import RunFailed
from tests.support.forked_functions import end, sleep, wait_for_message
from tests.support.process_states import descendants, exists, is_running, wait_until

# Importing torch would take seconds.
WITHOUT_IMPORTS = "import importlib\nimportlib.import_module = lambda name: None\n"
NO_ROOM = "import os\ndef fork():\n    raise BlockingIOError(11, '')\nos.fork = fork\n"
PROGRAM = """
import os, sys, time
from imagemill.pipeline.engines.fork_server import call_in_worker, fork, start_server
{code}
"""


@pytest.fixture(autouse=True)
def server(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a server that imports no torch; return the file that changes it at its start."""
    end_server()
    # Modules of the current folder are not found in workers, and these tests need `tests`.
    monkeypatch.chdir(tmp_path)
    folder = tmp_path_factory.mktemp("server")
    file = folder / "sitecustomize.py"
    file.write_text(WITHOUT_IMPORTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    yield file
    end_server()


def program(code: str, **options) -> "subprocess.Popen[str]":
    """Start a program that uses a fork server."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(code=code)], **pipes, **options)


def server_pid() -> int:
    return start_server()._process.pid


def test_process_has_the_present_environment(tmp_path: Path, monkeypatch) -> None:
    """Variables, the current folder and the module path may change after the server has started."""
    start_server()
    monkeypatch.setenv("CHANGED", "é")
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    state = "(dict((os := __import__('os')).environ), os.getcwd(), __import__('sys').path)"
    environment, folder, path = call_in_worker(eval, state)
    assert environment == dict(os.environ)
    assert folder == str(tmp_path)
    assert path[0] == str(tmp_path / "modules")


def test_process_in_a_deleted_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert call_in_worker(abs, -3) == 3


def test_module_path_omits_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    """A user's folder may hold files with names of modules. Any characters are allowed in other folders."""
    camera = tmp_path / "📷 'photos' ü"
    camera.mkdir()
    (camera / "snapshot_of_test.py").write_text("value = 7")
    monkeypatch.setattr(sys, "path", [str(camera), "", str(tmp_path), Path("/no/string"), *sys.path])
    monkeypatch.chdir(tmp_path)
    assert module_path()[0] == str(camera)
    assert not {"", str(tmp_path), Path("/no/string")}.intersection(module_path())
    assert call_in_worker(eval, "__import__('snapshot_of_test').value") == 7


def test_user_modules_do_not_hide_ours(tmp_path: Path, monkeypatch) -> None:
    for name in ("torch", "models", "json", "socket"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is a file of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert call_in_worker(abs, -3) == 3


def test_exceptions_reach_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        call_in_worker(divmod, 1, 0)
    with pytest.raises(RunFailed, match="a worker process was killed by SIGKILL, as when memory runs out"):
        call_in_worker(eval, "(os := __import__('os')).kill(os.getpid(), 9)")
    assert describe_end(3) == "ended with exit code 3"
    assert describe_end(-11) == "was killed by SIGSEGV"


def test_interrupted_call_leaves_no_process() -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(InterruptedError):
            call_in_worker(time.sleep, 600)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert wait_until(lambda: not descendants(server_pid()), 10)


def test_killed_server_is_replaced() -> None:
    first = server_pid()
    worker = fork(sleep)
    os.kill(first, signal.SIGKILL)
    # A process that does not notice the end of its connection would go on.
    assert wait_until(lambda: not is_running(first) and not is_running(worker.pid), 10)
    assert call_in_worker(abs, -3) == 3
    assert server_pid() != first
    assert not exists(first)


def test_stopped_server_can_be_ended() -> None:
    call_in_worker(abs, -3)
    pid = server_pid()
    os.kill(pid, signal.SIGSTOP)
    end_server()
    assert wait_until(lambda: not exists(pid), 10)


def test_idle_server_ends_and_leaves_no_zombie(server: Path) -> None:
    server.write_text(WITHOUT_IMPORTS + "from imagemill.pipeline.engines import fork_loop\nfork_loop.IDLE_SECONDS = 0.2\n")
    pid = server_pid()
    assert wait_until(lambda: not exists(pid), 30)
    assert call_in_worker(abs, -3) == 3


def test_kill_spares_a_process_with_the_same_id(monkeypatch) -> None:
    """A process that has ended was reaped, so that its id may belong to another process."""
    worker = fork(end)
    assert worker.exit_status(30) == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: pytest.fail("another process was killed"))
        worker.kill()
    worker.close()


def test_ended_processes_are_reaped() -> None:
    for _ in range(5):
        call_in_worker(abs, -3)
    assert wait_until(lambda: not descendants(server_pid()), 10)


def test_processes_end_with_their_connection() -> None:
    """A worker that waits for its driver ends when the connection is closed."""
    worker = fork(wait_for_message)
    assert wait_until(lambda: descendants(server_pid()), 30)
    worker.close()
    assert wait_until(lambda: not descendants(server_pid()), 10)


def test_messages_are_collected_and_limited() -> None:
    """Messages neither fill a disk nor block a process."""
    call_in_worker(eval, "[__import__('os').write(2, bytes(65536)) for _ in range(100)] and None")
    call_in_worker(os.write, 2, b"the last line\n")
    assert wait_until(lambda: fork_server.read_worker_messages().endswith(b"the last line\n"), 10)
    assert len(fork_server.read_worker_messages()) <= fork_server.MESSAGE_BYTES


@pytest.mark.parametrize("patch", ["raise ImportError('no libtorch_cpu.so')", "import os; os._exit(7)"])
def test_server_that_cannot_import_ends_the_run(server: Path, patch: str) -> None:
    server.write_text(f"import importlib\ndef import_module(name):\n    {patch}\nimportlib.import_module = import_module\n")
    message = "no libtorch_cpu.so" if "raise" in patch else "the server has ended"
    with pytest.raises(RunFailed, match=f"worker processes cannot be started: .*{message}"):
        call_in_worker(abs, -3)


def test_system_without_room_for_a_process(server: Path) -> None:
    server.write_text(WITHOUT_IMPORTS + NO_ROOM)
    with pytest.raises(RunFailed, match="worker processes cannot be started: Resource temporarily unavailable"):
        call_in_worker(abs, -3)


def test_driver_without_descriptors() -> None:
    call_in_worker(abs, -3)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
    fillers: list[int] = []
    try:
        while len(os.listdir("/proc/self/fd")) <= highest:
            fillers.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(RunFailed, match="worker processes cannot be started: Too many open files"):
            call_in_worker(abs, -3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)
    assert call_in_worker(abs, -3) == 3


@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), 9)", "os._exit(0)", "raise KeyboardInterrupt"])
def test_no_process_is_left_after_the_program(end: str) -> None:
    """The server and a process that ignores its connection end with the program."""
    run = program(
        "from tests.support.forked_functions import sleep\nworker = fork(sleep)\n"
        f"print(start_server()._process.pid, worker.pid, flush=True)\n{end}"
    )
    pids = list(map(int, run.stdout.readline().split()))
    run.wait(60)
    assert len(pids) == 2, run.stdout.read()
    assert wait_until(lambda: not any(map(is_running, pids)), 10)


def test_server_ends_after_a_driver_that_died_during_its_imports(server: Path) -> None:
    server.write_text("import importlib, time\nimportlib.import_module = lambda name: time.sleep(0.5)\n")
    run = program("print(start_server()._process.pid, flush=True)\nos.kill(os.getpid(), 9)")
    pid = int(run.stdout.readline())
    run.wait(60)
    assert wait_until(lambda: not is_running(pid), 10)


def test_forked_program_uses_its_own_server() -> None:
    code = (
        "server = start_server()\nassert call_in_worker(abs, -1) == 1\n"
        "if not os.fork():\n    assert call_in_worker(abs, -2) == 2\n"
        "    print(start_server()._process.pid != server._process.pid, flush=True)\n    os._exit(0)\n"
        "os.wait()\nprint(call_in_worker(abs, -3) == 3 and start_server() is server)"
    )
    assert program(code).communicate(timeout=60)[0] == "True\nTrue\n"
