"""The command line: exit codes, errors in one line, and the commands that read an output."""

import json
import logging
import os
import re
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from imagemill.models import checkpoint
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import image_id, part_name, reject_schema
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: denoise\nsigmas: 3", "unknown key 'sigmas'; valid: accept_damaged, address"),
        ("task: denoise\npool: {actor: 3}", "unknown key 'pool.actor'; valid: batch_size, dtype"),
        ("task: denoise\nlimit: many", "limit = 'many'"),
        ("task: dream", "task='dream': unknown. Valid: colorize, compress, denoise, inpaint"),
        ("task: denoise\nparams: {sigma: -3}", "params.sigma = -3"),
        ("task: denoise\nparams: {level: 3}", "denoise: unknown key 'params.level'; valid: "),
        ("task: denoise\ncheckpoint: compress-small", "made for the task compress, not denoise"),
        ("task: denoise\ncheckpoint: weights.pth", "pickled weights are refused"),
        ("task: denoise\ncheckpoint: nowhere", "'nowhere': not found. Give a folder, a URL, or one of the bundled"),
        ("task: denoise\ninput: http://example.com/x", "scheme 'http' is not supported. Valid: file, s3"),
        ("- a list", "must be a mapping of keys to values"),
        ("task: [", "not YAML"),
        (
            "jobs: []\nuntil: 06:00\npool: {actor: 3}",
            "unknown keys 'jobs', 'until'; valid: accept_damaged, address",
        ),
    ],
)
def test_invalid_config_is_one_line_and_exit_2(imagemill, tmp_path, photos, text, message):
    flags = [] if "input" in text else ["--input", photos]
    code, _, err = imagemill("run", "-c", write_yaml(tmp_path, text), *flags, "--output", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.count("max_reject_fraction") <= 1
    assert not (tmp_path / "out").exists()


def test_params_must_be_a_mapping_also_with_a_flag(imagemill, tmp_path, photos):
    for text in ("params: [sigma]", "params: 5", "params: []"):
        code, _, err = imagemill("denoise", photos, tmp_path / "out", "--sigma", 15, "-c", write_yaml(tmp_path, text))
        assert code == 2
        assert f"params = {yaml.safe_load(text)['params']}: must be a valid dictionary" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("place", ["input", "output"])
def test_url_with_one_slash_is_an_error_in_one_line(imagemill, tmp_path, photos, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    places = {"input": photos, "output": tmp_path / "out", place: "s3:/bucket/x"}
    code, _, err = imagemill("denoise", places["input"], places["output"])
    assert code == 2
    assert "s3:/bucket/x: write s3://, or" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [photos]


def test_checkpoint_with_a_wrong_digest_is_exit_2(imagemill, tmp_path, photos):
    bundled = Path(checkpoint.locate("denoise-small"))
    broken_folder = tmp_path / "broken"
    broken_folder.mkdir()
    (broken_folder / "card.json").write_bytes((bundled / "card.json").read_bytes())
    (broken_folder / "weights.safetensors").write_bytes((bundled / "weights.safetensors").read_bytes()[:-1] + b"!")
    code, _, err = imagemill("denoise", photos, tmp_path / "out", "--checkpoint", broken_folder)
    assert code == 2
    assert "but card.json says" in err


def test_missing_input_is_exit_5_and_an_image_is_exit_2(imagemill, tmp_path, photos):
    assert imagemill("denoise", tmp_path / "nowhere", tmp_path / "out")[0] == 5
    assert imagemill("denoise", photos / "0.png", tmp_path / "out")[0] == 2


def test_output_within_the_input_is_exit_2(imagemill, photos):
    code, _, err = imagemill("denoise", photos, photos / "out")
    assert code == 2
    assert "overlap: one contains the other" in err


def test_unwritable_output_is_exit_5(imagemill, tmp_path, photos):
    (tmp_path / "file").write_text("in the way")
    code, _, err = imagemill("denoise", photos, tmp_path / "file" / "out")
    assert code == 5
    assert err.count("\n") == 1


def test_output_of_another_run_is_exit_4(imagemill, tmp_path, photos):
    with Lease(Store(str(tmp_path / "out"))):
        code, _, err = imagemill("denoise", photos, tmp_path / "out")
    assert code == 4
    assert "another run holds this output" in err


def test_run_over_one_image_starts_one_worker(imagemill, tmp_path, photos, recwarn, engine):
    """One worker processes one image, and Ray does not warn about concurrent actors."""
    code, _, err = imagemill("denoise", photos, tmp_path / "out", "--limit", 1, "--engine", engine)
    assert code == 0
    assert "1 worker of" in err
    assert not [warning for warning in recwarn if "concurrent actors" in str(warning.message)]


def test_verbose_and_quiet_change_what_is_logged(imagemill, tmp_path, photos):
    """-v and -q work before and after the command, and do not change results on stdout."""
    plan = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out"]
    for options, level in (
        (plan, logging.INFO),
        (["-q", *plan], logging.WARNING),
        ([*plan, "--quiet"], logging.WARNING),
        (["--verbose", *plan], logging.DEBUG),
        ([*plan, "-v"], logging.DEBUG),
    ):
        code, out, _ = imagemill(*options)
        assert (code, logging.getLogger("imagemill").level) == (0, level)
        assert "3 images" in out


def test_commands_read_the_output_of_a_run(imagemill, tmp_path, photos):
    (photos / "bad.jpg").write_text("text")
    output = tmp_path / "out"
    config = write_yaml(tmp_path, f"task: denoise\ninput: {photos}\noutput: {output}")
    code, out, _ = imagemill("run", "-c", config, "--set", "params.sigma=5", "--limit", 4)
    assert code == 0
    assert "UnknownFormat 1" in out
    code, out, _ = imagemill("status", output)
    assert code == 0
    assert "3 images in 3 rows of " in out
    assert "rejects: 1 permanent (processed again with --retry-failed). List them with: imagemill failures\n" in out
    code, out, _ = imagemill("failures", output)
    assert "bad.jpg" in out
    code, out, _ = imagemill("verify", output)
    assert code == 0
    assert "checked 3 images, 3 rows, 1 reject row, 3 files, 0 latents: no problems\n" in out
    record = json.loads(next(output.glob("runs/*/run.json")).read_text())
    config_text = next(output.glob("runs/*/config.yaml")).read_text()
    assert "sigma: 5" in config_text
    assert record["planned"] == 4
    image = next((output / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-1])
    code, out, _ = imagemill("verify", output)
    assert code == 6
    assert "latents: 1 problem\n" in out
    assert image.name in out


def test_status_counts_permanent_and_transient_rejects(imagemill, tmp_path, crops):
    output = compressed(tmp_path, {"mended.png": crops[0][:28, :28]}, fence=2)
    assert "1 image in 1 row of 1 part\nrejects: none\n" in imagemill("status", output.url)[1]
    for fence, transient in ((1, {"mended.png": False, "a": False, "b": False, "c": True}), (3, {"b": True, "d": False})):
        rows = [
            {"image_id": image_id(name), "version": f"{fence}", "fence": fence, "transient": is_transient}
            for name, is_transient in transient.items()
        ]
        part = pa.Table.from_pylist(rows, reject_schema())
        output.write(f"rejects/{part_name(part)}", parquet_bytes(part, 1))
    rejects = "2 permanent (processed again with --retry-failed), 2 transient (processed again by the next run). "
    assert f"1 part\nrejects: {rejects}" in imagemill("status", output.url)[1]


def test_commands_over_latents_log_their_progress(imagemill, tmp_path, crops, monkeypatch):
    output = compressed(tmp_path, {f"{number}.png": crop for number, crop in enumerate(crops[:5])}, "compress-small")
    monkeypatch.setattr("imagemill.pipeline.progress.LOG_SECONDS", 0)
    for command in (
        ["decode", output.url, tmp_path / "decoded"],
        ["export", output.url, tmp_path / "exported"],
        ["map", output.url, tmp_path / "map.html"],
        ["stats", output.url],
        ["duplicates", output.url],
        ["search", output.url, "--id", "0.png"],
    ):
        code, _, err = imagemill(*command)
        assert code == 0
        assert re.search(r" INFO [a-z: ]+: 5 / 5 images, \d+\.\d images/s, 0:00:00 left\n", err), command


def test_reading_a_missing_output_is_exit_5(imagemill, tmp_path):
    for command in ("status", "verify", "failures"):
        assert imagemill(command, tmp_path / "nowhere")[0] == 5
    assert imagemill("decode", tmp_path / "nowhere", tmp_path / "dest")[0] == 5


READING = (
    ["status"],
    ["verify"],
    ["failures"],
    ["report"],
    ["stats"],
    ["map", "map.html"],
    ["duplicates"],
    ["search", "--id", "1.png"],
    ["export", "dest"],
    ["decode", "dest"],
)


def test_status_tells_killed_from_active_runs(imagemill, tmp_path):
    for run_id in ("20260101T000000Z-abcdef", "20260102T000000Z-abcdef"):
        (tmp_path / "out/runs" / run_id).mkdir(parents=True)
        (tmp_path / "out/runs" / run_id / "config.yaml").write_text("task: denoise")
    with Lease(Store(str(tmp_path / "out"))):
        code, out, _ = imagemill("status", str(tmp_path / "out"))
    assert code == 0
    # The run whose name is older may have started later.
    killed = [r"20260101T000000Z-abcdef +killed\b", r"20260102T000000Z-abcdef +killed\b"]
    assert all(re.search(f"{line} or running\n", out) for line in killed)
    assert f"running: process {os.getpid()} on " in out
    code, out, _ = imagemill("status", str(tmp_path / "out"))
    assert code == 0
    assert all(re.search(f"{line}\n", out) for line in killed)
    assert "running" not in out


def test_status_watches_a_run_on_another_machine(imagemill, tmp_path, monkeypatch):
    """Clocks differ between machines: only a changing heartbeat shows that the run is alive."""
    monkeypatch.setattr("imagemill.jobs.status.WATCH_SECONDS", 0.5)
    monkeypatch.setattr("imagemill.pipeline.output.lease.POLL_SECONDS", 0.05)
    claim = tmp_path / "out/runs/lease/00000001.json"
    claim.parent.mkdir(parents=True)
    claim.write_text('{"machine": "far/1", "pid": 7, "started": "1", "at": 4e9}')
    code, out, _ = imagemill("status", tmp_path / "out")
    assert code == 0
    assert "lease: process 7 on far did not release it" in out
    assert "lease: no heartbeat in 0 s. The next run takes over after 60 s without one" in out
    stop_event = threading.Event()

    def beat() -> None:
        while not stop_event.wait(0.02):
            claim.with_suffix(".beat").write_text(f'{{"at": {time.monotonic()}}}')

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        code, out, _ = imagemill("status", tmp_path / "out")
    finally:
        stop_event.set()
        beats.join()
    assert code == 0
    assert "running: process 7 on far, last heartbeat 0 s ago" in out


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
def test_reading_another_folder_is_an_error_in_one_line(imagemill, tmp_path, photos, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for place in ("empty", "photos"):
        code, _, err = imagemill(command[0], place, *command[1:])
        assert code == 5
        assert f"{place}: is not an output of imagemill: no results/, rejects/ or runs/. Give the OUTPUT of a run" in err
        assert err.count("\n") == 1
    (tmp_path / "export/runs/lease").mkdir(parents=True)
    (tmp_path / "export/export.json").write_text('{"format": "npy"}')
    code, _, err = imagemill(command[0], "export", *command[1:])
    assert code == 2
    assert ("an export to npy" if command == ["decode", "dest"] else "Give the output that it was made from") in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "export", "photos"]


@pytest.mark.parametrize(
    "command",
    [
        ["map"],
        ["failures", "--export"],
        ["duplicates", "--export"],
        ["duplicates", "--sheet"],
        ["search", "--id", "1.png", "--sheet"],
    ],
    ids=" ".join,
)
def test_unwritable_file_is_an_error_before_the_work(imagemill, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").mkdir()
    # OUTPUT does not exist: the error is about the file, so the file is checked first.
    problems = {"no/dir/x.csv": "folder no/dir does not exist. Create it first", "there.csv": "is a folder. Give the name"}
    for name, message in problems.items():
        code, _, err = imagemill(command[0], "nowhere", *command[1:], name)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_output_with_only_runs_can_be_read(imagemill, tmp_path):
    (tmp_path / "out/runs").mkdir(parents=True)
    for command in ("status", "verify", "failures"):
        assert imagemill(command, tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "nowhere.png"], "style nowhere.png: no such file"),
        ([], "style"),
        (["--style", "0.png", "--method", "gatys", "--beta", "-1"], "params.beta = -1.0"),
        (["--style", "0.png", "--method", "oil"], "params.method = 'oil'"),
        (["--style", "0.png", "--steps", "5"], "steps: only the method gatys uses it"),
        (["--style", "0.png", "--method", "gatys", "--checkpoint", "vgg19-dcbb9e9d.pth"], "vgg19-dcbb9e9d.pth is missing"),
    ],
)
def test_invalid_style_transfer_is_one_line(arguments, message, imagemill, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    code, _, err = imagemill("stylize", photos, tmp_path / "out", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
