"""Test nights: new images, missed days, deadlines, failed runs and the notification."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imagemill.jobs.night_config import NightlyConfig, plan_night
from imagemill.jobs.night_page import write_night_page
from imagemill.jobs.night_summary import NightSummary, RunSummary
from imagemill.jobs.nightly import seconds_until, show_night
from imagemill.pipeline.config import read_yaml, validate
from imagemill.pipeline.errors import ConfigError, Deadline, NightFailed, StorageError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store

TONIGHT = date(2026, 3, 1)


@pytest.fixture
def night(tmp_path: Path, crops: list[np.ndarray]) -> dict[str, Any]:
    """Return the config of a night with a dated and an undated job, which writes its notification to a file."""
    for place in ("all", "in/2026-02-27", "in/2026-03-01"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(crops[number]).save(tmp_path / place / f"{number}.png")
    save = f"import sys; open({str(tmp_path / 'notification.json')!r}, 'w').write(sys.stdin.read())"
    return {
        "jobs": [
            {"name": "dated", "task": "denoise", "input": f"{tmp_path}/in/{{date}}", "output": f"{tmp_path}/out/{{date}}"},
            {"name": "whole", "task": "compress", "input": f"{tmp_path}/all", "output": f"{tmp_path}/codes"},
        ],
        "report": f"{tmp_path}/nights",
        "notify": {"command": [sys.executable, "-c", save]},
    }


def notification(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "notification.json").read_text())
    return content


def test_night_processes_new_images_and_missed_days(night, tmp_path, capsys):
    show_night(NightlyConfig(**night), TONIGHT)
    runs = notification(tmp_path)["runs"]
    assert {r["exit_reason"] for r in runs if "run_id" not in r} == {"no input for this day"}
    runs = [run for run in runs if "run_id" in run]
    assert [(r["job"], r["ok"], r["exit_code"]) for r in runs] == [
        ("dated 2026-02-27", 2, 0), ("dated 2026-03-01", 2, 0), ("whole", 2, 0),
    ]  # fmt: skip
    assert all(verify(Store(run["output"])).problems == [] for run in runs)
    page = Path(notification(tmp_path)["report"])
    text = page.read_text()
    assert "Missed days, now processed: dated 2026-02-27 (2)." in text
    assert "Jobs without an input: 6" in text
    links = [(page.parent / link).resolve() for link in re.findall('<a href="([^"]+)"', text)]
    assert links == [Path(run["report"]).resolve() for run in runs]
    assert all(link.exists() for link in links)
    capsys.readouterr()
    show_night(NightlyConfig(**night), TONIGHT)
    assert "nothing new" in capsys.readouterr().out
    assert [r["planned"] for r in notification(tmp_path)["runs"] if "planned" in r] == [0, 0, 0]
    newest = (tmp_path / "nights/index.html").read_text()
    assert 'badge good">nothing new' in newest
    assert f'<a href="{page.name}">' in newest

    # A failed job is named, and the other jobs run.
    (tmp_path / "in/2026-03-01/2.png").write_bytes((tmp_path / "all/0.png").read_bytes())
    (tmp_path / "all/2.png").write_bytes((tmp_path / "all/0.png").read_bytes())
    broken_job = {"name": "broken", "task": "denoise", "input": f"{tmp_path}/nowhere", "output": f"{tmp_path}/x"}
    with pytest.raises(NightFailed, match="1 of 10") as failure:
        show_night(NightlyConfig(**night | {"jobs": [broken_job, *night["jobs"]], "drift_alert": 50.0}), TONIGHT)
    assert failure.value.exit_code == 5
    assert [r["ok"] for r in notification(tmp_path)["runs"] if "ok" in r] == [0, 1, 1]
    [(drift, end)] = [(r["drift"], r["exit_reason"]) for r in notification(tmp_path)["runs"] if "drift" in r]
    assert (drift["against"], drift["alert"], end) == (runs[2]["run_id"], False, "done")
    assert drift["distance"] > 0

    # A missing parent folder is an error, not a day without images.
    missing_job = {**night["jobs"][0], "input": f"{tmp_path}/moved/{{date}}"}
    with pytest.raises(NightFailed):
        show_night(NightlyConfig(jobs=[missing_job]), TONIGHT)


def test_night_accepts_a_date_anywhere_in_the_input(night, tmp_path):
    """A day without a folder is skipped, and an unreachable bucket fails only its own job."""
    for place in ("in/2026-02-27", "in/2026-03-01"):
        (tmp_path / place).rename(tmp_path / "day")
        (tmp_path / place).mkdir()
        (tmp_path / "day").rename(tmp_path / place / "raw")
    dated_job, undated_job = night["jobs"]
    dated_job["input"] = f"{tmp_path}/in/{{date}}/raw/"
    storage = {"endpoint_url": "http://127.0.0.1:1"}
    unreachable_job = {"name": "silent", "task": "denoise", "input": "s3://b/{date}", "output": f"{tmp_path}/s/{{date}}"}
    night |= {"jobs": [unreachable_job | {"storage": storage}, dated_job, undated_job], "catch_up": 3}
    with pytest.raises(NightFailed, match="4 of 9 runs"):
        show_night(NightlyConfig(**night), TONIGHT)
    [problem] = notification(tmp_path)["problems"]
    assert problem.startswith("silent: input s3://b: ")
    assert "silent: input s3://b: " in Path(notification(tmp_path)["report"]).read_text()
    runs = notification(tmp_path)["runs"]
    assert [run["exit_code"] for run in runs] == [5, 5, 5, 5, 0, 0, 0, 0, 0]
    assert "s3://b/2026-03-01" in runs[3]["exit_reason"]
    assert [run["exit_reason"] for run in runs[4:8]] == ["no input for this day", "done", "no input for this day", "done"]


def test_night_continues_after_a_refused_run(night, tmp_path):
    """An input from another location, or an output with a user's files, fails only its own job."""
    undated_job = night["jobs"][1]
    first_job = {"name": "first", "task": "denoise", "input": f"{tmp_path}/all", "output": f"{tmp_path}/clean"}
    card = first_job | {"name": "card", "input": f"{tmp_path}/in/2026-03-01"}
    (tmp_path / "project/images").mkdir(parents=True)
    (tmp_path / "project/images/0.png").write_bytes(b"mine")
    project = first_job | {"name": "project", "output": f"{tmp_path}/project"}
    jobs = [first_job, card, project, undated_job]
    with pytest.raises(NightFailed, match=r"2 of 4 runs failed: card \(exit 2\); project \(exit 2\)"):
        show_night(NightlyConfig(**night | {"jobs": jobs}), TONIGHT)
    runs = notification(tmp_path)["runs"]
    assert [run["exit_code"] for run in runs] == [0, 2, 2, 0]
    assert "2 of its 2 images have rows that were made from" in runs[1]["exit_reason"]
    assert "images/ contains files that no run of imagemill wrote" in runs[2]["exit_reason"]
    assert (tmp_path / "project/images/0.png").read_bytes() == b"mine"
    show_night(NightlyConfig(**night | {"jobs": [card | {"allow_new_input": True}, undated_job]}), TONIGHT)
    assert [run["exit_reason"] for run in notification(tmp_path)["runs"]] == ["done", "done"]


def test_night_checks_all_jobs_before_the_first_run(night):
    night["jobs"][0]["output"] = "/tmp/all-dates-in-one"
    with pytest.raises(ConfigError, match="is in only one of input and output"):
        plan_night(NightlyConfig(**night), TONIGHT)
    first_job = {"name": "first", "task": "denoise", "input": "in", "output": "out"}
    invalid_jobs = {
        "unknown key 'inptu'": {"task": "denoise", "inptu": "x"},
        "job 2: task='denosie': unknown. Valid:": first_job | {"name": "job 2", "task": "denosie"},
        "job 2: denoise: unknown key 'params.sigam' (did you mean sigma?); valid: ensemble, sigma": first_job
        | {"name": "job 2", "params": {"sigam": 25}},
        "job 2: input: missing": {"task": "denoise", "output": "other"},
        "second: output out belongs to another job with the task denoise, not compress": first_job
        | {"name": "second", "task": "compress"},
        "job 2: input=['i/{date}']: must be one folder": {
            "task": "denoise",
            "input": ["i/{date}"],
            "output": "o/{date}",
        },
        "job 2: output={'{date}': 1}: must be one folder": {"task": "denoise", "input": "i/{date}", "output": {"{date}": 1}},
        "job 2: config=5: must be the name of one file": {"config": 5},
        "first: name='first': another job has this name": first_job | {"output": "other"},
        "job 2: config=None: must be the name of one file": {"config": None},
    }
    for message, job in invalid_jobs.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            plan_night(NightlyConfig(jobs=[first_job, job]), TONIGHT)


def test_job_config_is_relative_to_the_night(night, tmp_path):
    (tmp_path / "denoise.yaml").write_text("task: denoise\nrows_per_part: 7")
    job = {"config": "denoise.yaml", "input": "in", "output": "out", "limit": 3}
    (planned_run,) = plan_night(NightlyConfig(jobs=[job]), TONIGHT, tmp_path)
    assert (planned_run.config.task, planned_run.config.rows_per_part, planned_run.config.limit) == ("denoise", 7, 3)


@pytest.mark.parametrize(
    ("written", "until"),
    [("22:30", "22:30"), ("06:00", "06:00"), ("6:30", "06:30"), ("'22:30'", "22:30"), ("0:05", "00:05"), ("~", None)],
)
def test_until_needs_no_quotes(written, until, night, tmp_path):
    """YAML 1.1 would read 22:30 as the number 1350 in base 60."""
    (tmp_path / "night.yaml").write_text(f"until: {written}\n")
    values = night | read_yaml(str(tmp_path / "night.yaml"))
    assert validate(NightlyConfig, values, "night.yaml").until == until


@pytest.mark.parametrize("written", ["24:00", "22:60", "1350", "22:30:00", "yes", "2.5", "noon", "[22]"])
def test_until_must_be_a_time_of_day(written, night, tmp_path):
    (tmp_path / "night.yaml").write_text(f"until: {written}\n")
    with pytest.raises(ConfigError, match=r"^n: until = .*HH:MM from 00:00 to 23:59$"):
        validate(NightlyConfig, night | read_yaml(str(tmp_path / "night.yaml")), "n")


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_seconds_until_follows_daylight_saving_time():
    assert seconds_until("06:00", datetime(2026, 3, 28, 22, 30)) == 6.5 * 3600
    assert seconds_until("06:00", datetime(2026, 10, 24, 22, 30)) == 8.5 * 3600
    assert seconds_until("06:00", datetime(2026, 3, 1, 22, 30)) == 7.5 * 3600
    assert seconds_until("06:00", datetime(2026, 3, 1, 5, 59)) == 60
    assert seconds_until("06:00", datetime(2026, 3, 1, 6, 0)) == 24 * 3600


def test_deadline_during_a_report_leaves_the_run_done(night, tmp_path, monkeypatch):
    def raise_deadline(*_: object) -> None:
        raise Deadline

    monkeypatch.setattr("imagemill.pipeline.run.write_run_report", raise_deadline)
    dated_job, undated_job = night["jobs"]
    with pytest.raises(Deadline):
        show_night(NightlyConfig(**night | {"jobs": [undated_job, dated_job], "catch_up": 0}), TONIGHT)
    finished_run, pending_run = notification(tmp_path)["runs"]
    assert (finished_run["exit_code"], finished_run["exit_reason"], pending_run["exit_code"]) == (0, "done", 7)
    assert json.loads((tmp_path / "codes/runs" / finished_run["run_id"] / "run.json").read_text())["exit_code"] == 0


def test_failed_night_at_its_deadline_exits_with_8(night, tmp_path, monkeypatch):
    """Schedulers retry other exit codes, and a retry after the deadline would run until the next deadline."""

    def fail(config, record):
        raise StorageError("the store is away") if config.task == "denoise" else Deadline

    monkeypatch.setattr("imagemill.jobs.nightly.run", fail)
    night["jobs"][0] |= {"input": f"{tmp_path}/all", "output": f"{tmp_path}/out"}
    with pytest.raises(NightFailed, match=r"1 of 2 runs failed: dated \(exit 5\)\. Then .* deadline") as failure:
        show_night(NightlyConfig(**night), TONIGHT)
    assert failure.value.exit_code == notification(tmp_path)["exit_code"] == 8
    assert [run["exit_code"] for run in notification(tmp_path)["runs"]] == [5, 7]
    assert "1 of 2 runs failed, stopped at the deadline" in Path(notification(tmp_path)["report"]).read_text()


def test_night_fails_if_it_loses_more_than_a_few_images(night, tmp_path, capsys):
    """One new reject is no alarm, two of three new images are, and known rejects are none in the next night."""
    job = night["jobs"][1]
    (tmp_path / "all/broken.png").write_bytes(b"broken")
    night |= {"jobs": [job], "catch_up": 0}
    show_night(NightlyConfig(**night), TONIGHT)
    assert capsys.readouterr().out.splitlines()[0] == "done: 2 of 3 images ok, 1 rejected (UnknownFormat 1)"
    for number in range(2):
        (tmp_path / f"all/empty{number}.png").write_bytes(b"")
    Image.new("RGB", (64, 64)).save(tmp_path / "all/new.png")
    with pytest.raises(NightFailed) as failure:
        show_night(NightlyConfig(**night), TONIGHT)
    content = notification(tmp_path)
    assert failure.value.exit_code == content["exit_code"] == 3
    assert content["headline"] == "1 of 1 run failed: 1 of 3 images ok, 2 rejected (EmptyFile 2)"
    assert capsys.readouterr().out.splitlines()[0] == content["headline"]
    [run] = content["runs"]
    assert (run["ok"], run["reasons"]) == (1, {"EmptyFile": 2})
    assert "2 of 3 images were rejected (EmptyFile 2), more than max_reject_fraction=0.05 allows" in run["exit_reason"]
    page = Path(content["report"]).read_text()
    assert 'badge bad">1 of 1 run failed<' in page
    assert "2 rejected</b> (EmptyFile 2)" in page
    # The rows of the failed night stay, and its rejects are known, so the next night is done.
    show_night(NightlyConfig(**night), TONIGHT)
    assert notification(tmp_path)["headline"] == "nothing new"
    [planned_run] = plan_night(NightlyConfig(**night | {"jobs": [job | {"max_reject_fraction": 1}]}), TONIGHT)
    assert (planned_run.config.max_reject_fraction, planned_run.config.min_rejects) == (1, 2)


def test_interrupted_run_names_its_classes_of_rejects(night, tmp_path, monkeypatch):
    """The signal arrives after the last part and before the account of the run."""

    def raise_deadline(*_: object) -> None:
        raise Deadline

    monkeypatch.setattr("imagemill.pipeline.run.account", raise_deadline)
    (tmp_path / "all/0.png").write_bytes(b"broken")
    for number in (1, 2):
        (tmp_path / f"all/{number}.png").write_bytes(b"")
    with pytest.raises(Deadline):
        show_night(NightlyConfig(**night | {"jobs": [night["jobs"][1]]}), TONIGHT)
    content = notification(tmp_path)
    counts = "0 of 3 images ok, 3 rejected (EmptyFile 2, UnknownFormat 1)"
    assert content["headline"] == f"stopped at the deadline: {counts}"
    assert list(content["runs"][0]["reasons"].items()) == [("EmptyFile", 2), ("UnknownFormat", 1)]
    assert "3 rejected</b> (EmptyFile 2, UnknownFormat 1);" in Path(content["report"]).read_text()


def test_rejects_without_classes_have_no_brackets(tmp_path):
    night = NightSummary(began := "2026-03-01T00:00:00+00:00", began, 7, [RunSummary("a", None, "o", 7, "deadline")])
    night.runs[0].planned, night.runs[0].ok, night.runs[0].rejected = 9, 3, 2
    assert night.content()["headline"] == "stopped at the deadline: 3 of 9 images ok, 2 rejected"
    page = Path(str(write_night_page(Store(str(tmp_path)), night.content()))).read_text()
    assert "2 rejected</b>; 0 done before" in page


def test_input_without_known_images_is_a_warning(night, tmp_path, caplog):
    undated_job = {"jobs": [night["jobs"][1]], "catch_up": 0, "report": night["report"], "notify": night["notify"]}
    show_night(NightlyConfig(**undated_job), TONIGHT)
    for path in Path(undated_job["jobs"][0]["input"]).iterdir():
        path.unlink()
    show_night(NightlyConfig(**undated_job), TONIGHT)
    [line] = notification(tmp_path)["runs"]
    assert line["exit_code"] == line["found"] == 0
    assert "holds none of the images that" in line["doubt"]
    assert line["exit_reason"] == f"done; {line['doubt']}"
    page = Path(notification(tmp_path)["report"]).read_text()
    assert "check the inputs" in page
    assert "nothing new" not in page


@pytest.mark.chaos
def test_night_stops_at_its_deadline_and_the_next_continues(night, tmp_path):
    """Run the real command with a deadline 1.5 seconds away."""
    night["jobs"] = night["jobs"][1:]
    for number in range(2, 60):
        (tmp_path / "all" / f"{number}.png").write_bytes((tmp_path / "all" / f"{number % 2}.png").read_bytes())
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(night))
    start = (
        "import imagemill.jobs.nightly as n; n.seconds_until = lambda *_: 1.5\n"
        f"import sys; sys.argv = ['imagemill', 'nightly', '-c', {str(tmp_path / 'night.yaml')!r}, '--until', '06:00']\n"
        "from imagemill.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 7, result.stderr
    assert "deadline" in result.stderr
    assert notification(tmp_path)["runs"][0]["exit_reason"] == "deadline"
    assert "stopped at the deadline" in Path(notification(tmp_path)["report"]).read_text()
    command = [sys.executable, "-m", "imagemill", "nightly", "-c", str(tmp_path / "night.yaml")]
    assert subprocess.run(command, capture_output=True, timeout=280, check=False).returncode == 0
    verification = verify(Store(str(tmp_path / "codes")))
    assert (verification.images, verification.problems) == (60, [])
