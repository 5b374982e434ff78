"""Watchdog: it ends a process that is stuck, and only that."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.pipeline.watchdog import Step, Watchdog

PROGRAM = """
import ctypes, sys, threading, time
from imagemill.pipeline import logs, watchdog
from imagemill.pipeline.watchdog import Watchdog

def record(steps):
    print([(step.stage, *step.image_ids) for step in steps], flush=True)

def in_step(stage, *image_ids, work):
    def run():
        with dog.step(stage, *image_ids):
            work()
    threading.Thread(target=run, daemon=True).start()

logs.configure(sys.stderr)
dog = Watchdog({limit_s}, record)
dog.start()
"""


def start(body: str, limit_s: float = 0.5) -> subprocess.Popen[str]:
    """Start a process with a Watchdog `dog` that runs a program."""
    code = PROGRAM.format(limit_s=limit_s) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(body: str) -> tuple[int, str, str]:
    """Return the exit code, the output and the messages of a program."""
    process = start(body)
    output, messages = process.communicate(timeout=120)
    return process.returncode, output, messages


def no_record(steps: list[Step]) -> None:
    raise AssertionError(steps)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.floats(0, 30), st.integers(0, 60), st.integers(1, 60)), max_size=8),
    st.lists(st.floats(0, 2), max_size=60),
)
def test_steps_are_late_after_the_limit_of_their_images(
    planned: list[tuple[int, float, int, int]], looks: list[float]
) -> None:
    """A step is late once the looks since its begin add up to more than its limit, and not after its end."""
    dog = Watchdog(10, no_record)
    with ExitStack() as stack:
        open_steps: dict[str, tuple[ExitStack, float, int]] = {}
        now = 0.0
        for number, elapsed_s in enumerate(looks):
            for name, (images, extra_s, begins, length) in enumerate(planned):
                if begins == number:
                    step = stack.enter_context(ExitStack())
                    step.enter_context(dog.step(str(name), *["i"] * images, extra_s=extra_s))
                    open_steps[str(name)] = step, now + 10 * images + extra_s, begins + length
            for name in [name for name, (*_, ends) in open_steps.items() if ends == number]:
                open_steps.pop(name)[0].close()
            late = {step.stage for step in dog.advance(elapsed_s, cpu_s=0)}
            now += elapsed_s
            assert late == {name for name, (_, limit_s, _) in open_steps.items() if now > limit_s}


@pytest.mark.parametrize(
    ("elapsed_s", "cpu_s", "is_late"),
    [(2.0, 0.0, False), (1e6, 0.0, False), (1e6, 2.0, False), (1e6, 1e3, True), (12.0, 12.0, True), (9.0, 1e6, False)],
)
def test_stopped_time_does_not_count(elapsed_s: float, cpu_s: float, is_late: bool) -> None:
    """After a pause of the whole process, a step keeps its time. CPU time shows that the process was not paused."""
    dog = Watchdog(10, no_record)
    with dog.step("decode", "a"):
        assert bool(dog.advance(elapsed_s, cpu_s)) == is_late


def test_restarted_step_has_its_time_again() -> None:
    """A step that reports progress is not stuck, however long it takes."""
    dog = Watchdog(10, no_record)
    with dog.step("model", "a", "b") as restart:
        for _ in range(5):
            assert not [late for _ in range(9) for late in dog.advance(2, 0)]
            restart()
        assert [len(dog.advance(2, 0)) for _ in range(11)] == [0] * 10 + [1]


@pytest.mark.parametrize("work", ["threading.Event().wait", "lambda: [None for _ in iter(int, 1)]", "blocked.read"])
def test_stuck_step_ends_the_process(work: str) -> None:
    """Only the stuck step is recorded, whether it is a wait, an endless loop in Python, or a read that blocks."""
    body = f"""
        import os
        blocked = open(os.pipe()[0])
        in_step("fetch", "quick", work=lambda: None)
        in_step("decode", "stuck", work={work})
        while True:
            with dog.step("model", "a", "b"):
                time.sleep(0.01)
    """
    code, output, messages = run(body)
    assert (code, output) == (1, "[('decode', 'stuck')]\n")
    assert "decode did not end within 0.5 s: image_id stuck. This worker ends" in messages


def test_late_batch_has_the_time_of_all_its_images() -> None:
    body = """
        began = time.monotonic()
        in_step("model", "a", "b", "c", work=threading.Event().wait)
        record = dog._record
        dog._record = lambda steps: (record(steps), print(time.monotonic() - began, flush=True))
        time.sleep(60)
    """
    code, output, _ = run(body)
    steps, seconds = output.splitlines()
    assert (code, steps) == (1, "[('model', 'a', 'b', 'c')]")
    assert 1.5 < float(seconds) < 30


def test_native_code_that_keeps_the_gil_is_ended() -> None:
    """No thread of Python runs, so nothing is recorded. A C thread prints where the process is stuck."""
    body = """
        watchdog.GIL_SECONDS = 0.5
        time.sleep(0.3)
        in_step("decode", "a", work=ctypes.PyDLL(None).pause)
        time.sleep(60)
    """
    code, output, messages = run(body)
    assert (code, output) == (1, "")
    assert "Timeout (0:00:01" in messages


@pytest.mark.parametrize(("record", "message"), [("1 / 0", "ZeroDivision"), ("time.sleep(60)", "Timeout (0:00:01")])
def test_process_ends_even_if_nothing_can_be_recorded(record: str, message: str) -> None:
    body = f"""
        watchdog.GIL_SECONDS = 0.5
        dog._record = lambda steps: {record}
        in_step("fetch", "a", work=threading.Event().wait)
        time.sleep(60)
    """
    code, output, messages = run(body)
    assert (code, output) == (1, "")
    assert message in messages


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def working_process() -> Iterator[subprocess.Popen[str]]:
    """Return a process that began a step of half a second with a limit of one."""
    process = start(
        """
        with dog.step("decode", "a"):
            print("began", flush=True)
            time.sleep(0.5)
        print("ended", flush=True)
        """,
        limit_s=1,
    )
    yield process
    process.kill()
    process.wait()


def test_stopped_process_is_not_ended(working_process: subprocess.Popen[str]) -> None:
    """A stop (SIGSTOP) longer than the limit does not count. `sleep` wakes late, but the step is not stuck."""
    assert working_process.stdout
    assert working_process.stdout.readline() == "began\n"
    os.kill(working_process.pid, signal.SIGSTOP)
    while not is_stopped(working_process.pid):
        time.sleep(0.01)
    time.sleep(2)
    os.kill(working_process.pid, signal.SIGCONT)
    assert working_process.communicate(timeout=60)[0] == "ended\n"
    assert working_process.returncode == 0
