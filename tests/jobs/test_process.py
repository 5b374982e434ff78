"""Test a command's process: closed streams, limited encodings, signals and locales."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from imagemill.jobs.batch import run_and_show
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import Deadline, Interrupted, TooManyRejects
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id, part_name, reject_schema
from imagemill.pipeline.storage import Store

IMAGEMILL = [sys.executable, "-m", "imagemill"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale that Python does not replace by UTF-8."""


@pytest.fixture
def rejects(tmp_path: Path) -> Path:
    """Return an output with more rejects than a pipe buffers, whose names are not ASCII."""
    output = Store(str(tmp_path / "out"))
    names = [f"grün-{number}.png" for number in range(2_000)]
    common = {
        "version": "1",
        "fence": 1,
        "transient": False,
        "stage": "decode",
        "error_class": "E",
        "error_message": "ä" * 99,
    }
    part = pa.Table.from_pylist([{"image_id": image_id(n), "rel_path": n, **common} for n in names], reject_schema())
    output.write(f"rejects/{part_name(part)}", parquet_bytes(part, 1))
    return tmp_path / "out"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Return an empty input, so that a run needs no Ray."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def shell(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in which "$@" is the command with these arguments."""
    command = ["bash", "-c", f"set -o pipefail; {script}", "bash", *IMAGEMILL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=240)


def test_process_survives_a_closed_pipe(rejects: Path) -> None:
    """`imagemill failures OUT | head -1` exits with 0 and prints no error."""
    result = shell('"$@" | head -1', "failures", rejects)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.count(b"\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_process_survives_closed_streams(closed: str, empty: Path, tmp_path: Path) -> None:
    """A run with closed streams processes its images, writes run.json, and writes no message into output files."""
    result = shell(f'"$@" {closed}', "denoise", empty, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_reason"] == "done"
    result = shell(f'"$@" {closed}', "failures", tmp_path / "nowhere")
    assert result.returncode == 5
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, ASCII], ids=["ascii", "C"])
def test_process_shows_names_in_any_locale(environment: dict[str, str], rejects: Path) -> None:
    """Characters that an encoding lacks are escaped, and the exit code does not depend on the locale."""
    result = shell('"$@"', "failures", rejects, **environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (b"gr\\xfcn-7.png" if "PYTHONIOENCODING" in environment else "grün-7.png".encode()) in result.stdout


def test_process_reads_names_as_utf8_in_any_locale(tmp_path: Path) -> None:
    """A UTF-8 name is read as UTF-8 also in an ASCII locale, because names identify images."""
    script = tmp_path / "names.py"
    script.write_text(
        "import os, sys\nsys.argv = ['imagemill', 'models']\nimport imagemill.jobs.process\n"
        "imagemill.jobs.process.run_command = lambda: print(ascii(os.listdir('names'))) or 0\n"
        "from imagemill.__main__ import main\nmain()\n"
    )
    (tmp_path / "names").mkdir()
    (tmp_path / "names/grün.png").touch()
    environment = os.environ | ASCII | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, script], capture_output=True, env=environment, cwd=tmp_path, timeout=120)
    assert result.stdout == b"['gr\\xfcn.png']\n", result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_imports_exits_with_130(number: signal.Signals) -> None:
    """A signal in the first second, while modules are imported, prints one line."""
    # Tests that run under `nohup` or in the background inherit ignored signals.
    default = "default_int_handler" if number == signal.SIGINT else "SIG_DFL"
    code = (
        f"import builtins, signal\nsignal.signal({int(number)}, signal.{default})\n"
        "from imagemill.__main__ import main\nbefore = builtins.__import__\n"
        "def late(name, *rest):\n    if name == 'imagemill.jobs.process':\n"
        f"        signal.raise_signal({int(number)})\n    return before(name, *rest)\n"
        "builtins.__import__ = late\nmain()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (result.returncode, result.stdout) == (130, b"")
    assert result.stderr == b"imagemill: interrupted before any work began\n"


def interrupt(*_: object) -> None:
    raise Interrupted


def test_signal_during_the_report_leaves_the_run_done(empty: Path, tmp_path: Path, monkeypatch, caplog, capsys) -> None:
    """All images are processed before the report: the run exits with 0 and names the missing report."""
    monkeypatch.setattr("imagemill.pipeline.run.write_run_report", interrupt)
    config = RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out"))
    run_and_show(config)
    assert "interrupted after all images were processed. To write the report, run: imagemill report" in caplog.text
    assert "planned" in capsys.readouterr().out
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_code"] == 0


def test_summary_counts_the_time_of_the_report(empty: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A user waits for the report too. run.json is written before, so its `total` lacks that time."""
    clock = [0.0]
    monkeypatch.setattr("imagemill.jobs.batch.monotonic", lambda: clock[0], raising=False)
    monkeypatch.setattr("imagemill.pipeline.run.write_run_report", lambda *_: clock.append(clock.pop() + 1000))
    run_and_show(RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out")))
    assert "1000.0 s" in capsys.readouterr().out


def test_signal_during_the_report_keeps_the_failure(empty: Path, tmp_path: Path, monkeypatch) -> None:
    """The error that ended the run is what the command and run.json report."""

    def too_many(*_: object) -> None:
        raise TooManyRejects("too many")

    monkeypatch.setattr("imagemill.pipeline.run.write_run_report", interrupt)
    monkeypatch.setattr("imagemill.pipeline.run.account", too_many)
    with pytest.raises(TooManyRejects):
        run(RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out")))


@pytest.mark.parametrize("stage", ["finish_interrupted_merges", "build_plan", "account"])
@pytest.mark.parametrize("error", [Interrupted, Deadline])
def test_run_writes_its_record_after_a_signal_in_any_stage(stage, error, empty: Path, tmp_path: Path, monkeypatch) -> None:
    """A run that has started writes run.json, no matter when the signal arrives."""

    def raise_error(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"imagemill.pipeline.run.{stage}", raise_error)
    with pytest.raises(error):
        run(RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out")))
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_code"] == error.exit_code
