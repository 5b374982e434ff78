"""The process of a command: streams that are closed or lack characters, signals at a bad moment, other locales."""

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
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id, parquet_bytes, part_name, reject_schema
from imagemill.pipeline.storage import Store
from tests.support.run_processes import images_written, make_photos, wait_for

IMAGEMILL = [sys.executable, "-m", "imagemill"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale that Python would take as it is."""


@pytest.fixture
def rejects(tmp_path: Path) -> Path:
    """An OUTPUT with more rejects than a pipe holds, whose names ASCII lacks."""
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
    """An INPUT without images, so that a run needs no Ray."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def shell(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell script in which "$@" is the command with these arguments."""
    command = ["bash", "-c", f"set -o pipefail; {script}", "bash", *IMAGEMILL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=240)


def test_process_outlasts_reader_of_its_pipe(rejects: Path) -> None:
    """`imagemill failures OUT | head -1` ends with 0 and without a complaint."""
    ended = shell('"$@" | head -1', "failures", rejects)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.count(b"\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_process_outlasts_closed_streams(closed: str, empty: Path, tmp_path: Path) -> None:
    """A run whose streams are closed does its work, keeps its record, and writes no word into its files."""
    ended = shell(f'"$@" {closed}', "denoise", empty, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_reason"] == "done"
    ended = shell(f'"$@" {closed}', "failures", tmp_path / "nowhere")
    assert ended.returncode == 5
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, ASCII], ids=["ascii", "C"])
def test_process_shows_names_in_any_locale(environment: dict[str, str], rejects: Path) -> None:
    """Characters that a stream lacks are escaped; an exit code does not depend on the locale."""
    ended = shell('"$@"', "failures", rejects, **environment)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (b"gr\\xfcn-7.png" if "PYTHONIOENCODING" in environment else "grün-7.png".encode()) in ended.stdout


def test_process_reads_names_alike_in_any_locale(tmp_path: Path) -> None:
    """A name in UTF-8 is itself in a locale of ASCII too: names decide which image a row is of."""
    script = tmp_path / "names.py"
    script.write_text(
        "import os, sys\nsys.argv = ['imagemill', 'models']\nimport imagemill.jobs.process\n"
        "imagemill.jobs.process.run_command = lambda: print(ascii(os.listdir('names'))) or 0\n"
        "from imagemill.__main__ import main\nmain()\n"
    )
    (tmp_path / "names").mkdir()
    (tmp_path / "names/grün.png").touch()
    environment = os.environ | ASCII | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, script], capture_output=True, env=environment, cwd=tmp_path, timeout=120)
    assert ended.stdout == b"['gr\\xfcn.png']\n", ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_process_hears_signals_while_it_imports(number: signal.Signals) -> None:
    """A signal in the first second, while modules are imported, is one line and exit 130."""
    # A suite that was started by `nohup`, or in the background, hands on that signals are ignored.
    default = "default_int_handler" if number == signal.SIGINT else "SIG_DFL"
    code = (
        f"import builtins, signal\nsignal.signal({int(number)}, signal.{default})\n"
        "from imagemill.__main__ import main\nbefore = builtins.__import__\n"
        "def late(name, *rest):\n    if name == 'imagemill.jobs.process':\n"
        f"        signal.raise_signal({int(number)})\n    return before(name, *rest)\n"
        "builtins.__import__ = late\nmain()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (130, b"")
    assert ended.stderr == b"imagemill: interrupted before any work began\n"


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_ends_in_order_if_its_group_gets_signal(number: signal.Signals, tmp_path: Path, crops) -> None:
    """A terminal, and `timeout`, send their signals to all processes of a group: Ray's must not go first."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 400, crops)
    command = [*IMAGEMILL, "denoise", source.url, output.url, "--set", "rows_per_part=10"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(run, lambda: images_written(output) > 0)
    os.killpg(run.pid, number)
    said = run.communicate(timeout=200)[1].decode()
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("imagemill: interrupted. Committed rows are kept")
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_code"] == 130
    assert verify(output).problems == []


def signalled(*_: object) -> None:
    raise Interrupted


def test_run_is_done_when_signal_comes_during_report(empty: Path, tmp_path: Path, monkeypatch, caplog, capsys) -> None:
    """All images are done when the report is made: the run ends with 0, and says what was left out."""
    monkeypatch.setattr("imagemill.pipeline.run.write_run_report", signalled)
    config = RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out"))
    run_and_show(config)
    assert "interrupted after all images were processed. To write the report, run: imagemill report" in caplog.text
    assert "planned" in capsys.readouterr().out
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_code"] == 0


def test_run_keeps_its_failure_when_signal_comes_during_report(empty: Path, tmp_path: Path, monkeypatch) -> None:
    """What ended a run before its report is what the command says, as run.json does."""

    def too_many(*_: object) -> None:
        raise TooManyRejects("too many")

    monkeypatch.setattr("imagemill.pipeline.run.write_run_report", signalled)
    monkeypatch.setattr("imagemill.pipeline.run.account", too_many)
    with pytest.raises(TooManyRejects):
        run(RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out")))


@pytest.mark.parametrize("stage", ["settle", "build_plan", "account"])
@pytest.mark.parametrize("error", [Interrupted, Deadline])
def test_run_record_is_left_whatever_stage_ends(stage, error, empty: Path, tmp_path: Path, monkeypatch) -> None:
    """A run that began leaves run.json, at whichever stage a signal came."""

    def late(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"imagemill.pipeline.run.{stage}", late)
    with pytest.raises(error):
        run(RunConfig(task="denoise", input=str(empty), output=str(tmp_path / "out")))
    [record] = (tmp_path / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["exit_code"] == error.exit_code
