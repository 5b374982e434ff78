"""Test the checks of all locations of a night before its first run."""

import errno
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagemill.jobs.night_checks import PROBE, show_checks
from imagemill.jobs.night_config import NightlyConfig
from imagemill.jobs.submission import night_submission
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.storage import Store


def job(name: str, source: object, output: object, **keys: Any) -> dict[str, Any]:
    return {"name": name, "task": "denoise", "input": str(source), "output": str(output), **keys}


def test_night_lists_all_unusable_locations_at_once(rclone_bucket, tmp_path, caplog, monkeypatch):
    """An input that an earlier job writes may be missing. No check leaves a file behind."""
    Store(rclone_bucket).write("photos/0.png", b"content")
    (tmp_path / "file").write_text("[other]\naws_access_key_id=imagemill\naws_secret_access_key=wrong\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "file"))
    missing = f"{rclone_bucket}-missing"
    jobs = [
        job("good", f"{rclone_bucket}/photos", f"{rclone_bucket}/clean"),
        job("second", f"{rclone_bucket}/clean/images", tmp_path / "new/folder"),
        job("typo", f"{rclone_bucket}/potos", f"{missing}/out"),
        job("closed", f"{rclone_bucket}/photos", f"{rclone_bucket}/c", storage={"profile": "other"}),
        job("dated", tmp_path / "days/{date}", f"{tmp_path}/file/{{date}}"),
        job("last", tmp_path / "days2", tmp_path / "file"),
    ]
    with pytest.raises(StorageError, match=r"^9 problems with the locations of this night"):
        show_checks(NightlyConfig(jobs=jobs, report=f"{missing}/nights"), date(2026, 3, 1))
    bucket = missing.removeprefix("s3://")
    lines = [record.getMessage() for record in caplog.records if record.name == "imagemill.nightly"]
    expected = [
        f"typo: input {rclone_bucket}/potos: does not exist. Check the bucket, the prefix and the endpoint",
        f"typo: output {missing}/out: the bucket {bucket} does not exist. Create it, or check the name and the endpoint",
        f"closed: input {rclone_bucket}/photos: PermissionError: ",
        f"closed: output {rclone_bucket}/c: PermissionError: ",
        f"dated: input {tmp_path}/days: does not exist. Check the path",
        f"dated: output {tmp_path}/file/2026-03-01: {tmp_path}/file is not a folder. Choose another location",
        f"last: input {tmp_path}/days2: does not exist. Check the path",
        f"last: output {tmp_path}/file: {tmp_path}/file is not a folder. Choose another location",
        f"the night: report {missing}/nights: the bucket {bucket} does not exist",
    ]
    assert len(lines) == 9
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    assert all("Check the credentials and their rights" in line for line in lines[2:4])
    assert [entry.path for entry in Store(rclone_bucket).entries()] == ["photos/0.png"]
    assert os.listdir(tmp_path) == ["file"]


def test_interrupted_check_of_a_bucket_leaves_one_object(rclone_bucket, tmp_path, monkeypatch, caplog):
    """The next night removes the object, and an object of a user that has its name stays."""
    config = NightlyConfig(jobs=[job("a", tmp_path, f"{rclone_bucket}/out")])
    with monkeypatch.context() as no_delete:

        def refuse(self: Store, path: str) -> None:
            raise PermissionError(errno.EACCES, "Access Denied")

        no_delete.setattr(Store, "delete", refuse)
        for _ in range(2):
            with pytest.raises(StorageError, match="1 problem"):
                show_checks(config)
    assert "Access Denied. Check the credentials and their rights" in caplog.text
    assert [entry.path for entry in Store(rclone_bucket).entries()] == [f"out/{PROBE}"]
    show_checks(config)
    assert list(Store(rclone_bucket).entries()) == []
    Store(f"{rclone_bucket}/out").write(PROBE, b"")
    show_checks(config)
    assert Store(f"{rclone_bucket}/out").read(PROBE) == b""
    assert f"{rclone_bucket}/out/{PROBE}: not written by imagemill" in caplog.messages[-1]


def test_interrupted_check_of_a_folder_leaves_no_file(tmp_path, monkeypatch):
    """A killed process removes no name, so the file of the check must have none."""
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    show_checks(NightlyConfig(jobs=[job("a", tmp_path / "in", tmp_path / "out")]))
    assert os.listdir(tmp_path) == ["in"]


def test_dry_run_prints_the_runs_of_a_night(imagemill, tmp_path):
    (tmp_path / "in").mkdir()
    night = {"jobs": [job("clean", tmp_path / "in", tmp_path / "out")], "report": str(tmp_path / "nights")}
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(night))
    code, out, _ = imagemill("nightly", "-c", tmp_path / "night.yaml", "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "all locations can be used")
    assert f"clean  denoise  {tmp_path}/in" in out
    (tmp_path / "in").rmdir()
    code, _, err = imagemill("nightly", "-c", tmp_path / "night.yaml", "--dry-run")
    assert (code, len(err.splitlines())) == (5, 2)
    assert sorted(os.listdir(tmp_path)) == ["night.yaml"]


def test_night_submission_is_complete(tmp_path):
    """The cluster has no file of the job, no folder of code and no value of a variable."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/nets.py").write_text("")
    (tmp_path / "clean.yaml").write_text("task: denoise\nrows_per_part: 7\naddress: 127.0.0.1:6379\n")
    places = {"input": "s3://b/in/{date}", "output": "s3://b/out/{date}"}
    night = {
        "jobs": [{"config": "clean.yaml", "code": str(tmp_path / "code"), **places}],
        "notify": {"webhook": "https://${HOST}:8099/${HOOK}?${X}", "headers": {"X": "Bearer ${TOKEN}"}},
    }
    submission = night_submission(night, str(tmp_path / "night.yaml"))
    command, text = submission.entrypoint.split("\n", 1)
    assert command == f"exec python -m imagemill nightly -c /dev/stdin <<'END-{submission.job_id}'"
    values = yaml.safe_load(text.removesuffix(f"END-{submission.job_id}"))
    [folder] = submission.code
    code = Path(folder).name
    assert values["jobs"] == [{"task": "denoise", "rows_per_part": 7, "code": code, **places, "name": "job 1"}]
    assert values["notify"] == night["notify"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jobs": [job("a", "s3://b/in", "out")]}, "a: output='out': a relative path"),
        ({"report": "nights"}, "report='nights': a relative path"),
        ({"notify": {"webhook": "https://hooks.slack.com/T0P"}}, r"notify.webhook: Ray's dashboard would show the value"),
        ({"notify": {"webhook": "https://h/services/T0P?x=${X}"}}, r"notify.webhook: Ray's dashboard would show the value"),
        ({"notify": {"webhook": "${HOOK}/T0P"}}, r"notify.webhook: Ray's dashboard would show the value"),
        ({"notify": {"webhook": "https://h:${PORT}#T0P"}}, r"notify.webhook: Ray's dashboard would show the value"),
        ({"notify": {"webhook": "http://h", "headers": {"X": "T0P ${X}"}}}, r"notify.headers.X: Ray's dashboard would"),
        ({"notify": {"webhook": "http://h:8099", "headers": {"X": "T0P"}}}, r"notify.headers.X: Ray's dashboard would"),
        ({"jobs": [job("a", "s3://b/in", "s3://b/out", task="denosie")]}, "a: task='denosie': unknown"),
    ],
)
def test_night_submission_is_checked_first(values, message):
    with pytest.raises(ConfigError, match=message) as failure:
        night_submission({"jobs": [job("a", "s3://b/in", "s3://b/out")], **values}, "night.yaml")
    assert "T0P" not in str(failure.value)
