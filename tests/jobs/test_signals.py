"""A signal that arrives while no exception may be raised takes effect a moment later."""

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagemill.jobs.nightly import deadline
from imagemill.jobs.process import raise_interrupted
from imagemill.pipeline.errors import Deadline, Interrupted

AT_ONCE = "import signal\nsignal.raise_signal(signal.{name})\nwhole = True\n"


class SignalsWhenDeleted:
    """Send a signal in `__del__`, where Python discards exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.fixture
def handler() -> Iterator[None]:
    old_handler = signal.signal(signal.SIGTERM, raise_interrupted)
    yield
    signal.signal(signal.SIGTERM, old_handler)


def wait() -> None:
    for _ in range(1000):
        time.sleep(0.01)
    pytest.fail("the signal was lost")


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("name", ["SIGALRM", "SIGTERM"])
def test_signal_waits_for_the_end_of_an_import(name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"late_{name}.py").write_text(AT_ONCE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        with deadline(None):
            assert importlib.import_module(f"late_{name}").whole
            wait()

    with pytest.raises(Interrupted):
        work()
    assert sys.modules.pop(f"late_{name}")


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGALRM, Deadline), (signal.SIGTERM, Interrupted)])
def test_signal_during_deletion_is_not_lost(number: int, error: type[BaseException]) -> None:
    def work() -> None:
        with deadline(None):
            SignalsWhenDeleted(number)
            wait()

    with pytest.raises(error):
        work()
