"""Test `imagemill plan` and `--dry-run`: output, warnings, and that both change nothing."""

import json
import re

import pytest
import s3fs
from PIL import Image

from tests.support.outputs import compressed


def test_plan_changes_nothing(imagemill, tmp_path, photos):
    (photos / "notes.txt").write_text("no image")
    code, out, _ = imagemill("plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out", "--limit", 1)
    assert code == 0
    assert "3 images, 1 other file " in out
    assert "1 image, " in out
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_plan(imagemill, tmp_path, photos):
    """`TASK --dry-run`, `run --dry-run` and `plan` print the same and change nothing."""
    plan = imagemill("plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out", "--limit", 2)
    assert imagemill("denoise", photos, tmp_path / "out", "--limit", 2, "--dry-run") == plan
    (tmp_path / "job.yaml").write_text(f"task: denoise\ninput: {photos}\noutput: {tmp_path}/out\nlimit: 2")
    assert imagemill("run", "-c", tmp_path / "job.yaml", "--dry-run") == plan
    assert not (tmp_path / "out").exists()


def test_plan_json_has_stable_keys(imagemill, tmp_path, photos):
    """Stdout is exactly one JSON object with the keys that `plan_values` documents."""
    (photos / "notes.txt").write_text("no image")
    code, out, _ = imagemill("plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out", "--json")
    values = json.loads(out)
    assert code == 0
    assert list(values) == [
        "task", "model_id", "checkpoint_sha256", "input", "prefix", "output", "found", "ignored", "ignored_by_kind",
        "done_before", "rejects_waiting", "planned", "planned_bytes", "estimated_s", "input_warning", "refusal", "workers",
        "workers_free", "engine", "engine_reason",
    ]  # fmt: skip
    assert (values["task"], values["found"], values["planned"], values["ignored_by_kind"]) == ("denoise", 3, 3, {"txt": 1})
    assert (values["estimated_s"], values["refusal"], values["workers"]) == (None, None, None)
    assert values["planned_bytes"] == sum(path.stat().st_size for path in photos.glob("*.png"))


def test_plan_reports_bucket_errors_as_a_run_does(imagemill, photos, rclone_bucket, monkeypatch):
    places = ["plan", "--task", "denoise", "--input", photos, "--output"]
    assert imagemill(*places, f"{rclone_bucket}/out")[0] == 0
    code, _, err = imagemill(*places, "s3://there-is-none/out")
    assert code == 5
    assert "s3://there-is-none/out: the bucket there-is-none does not exist. Create it, or check the name" in err
    assert err.count("\n") == 1
    assert imagemill("denoise", photos, "s3://there-is-none/out") == (code, "", err)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    code, _, err = imagemill(*places, f"{rclone_bucket}/out")
    assert code == 5
    assert "PermissionError" in err
    assert err.count("\n") == 1


def test_plan_counts_other_files_by_kind(imagemill, tmp_path, photos):
    places = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out"]
    assert "3 images, 0 other files\n" in imagemill(*places)[1]
    for name in ("a.txt", "b.txt", "README", *(f"x.k{number}" for number in range(6))):
        (photos / name).touch()
    assert "3 images, 9 other files (txt 2, k0 1, k1 1, k2 1, k3 1, other 3)" in imagemill(*places)[1]


def test_plan_logs_progress_of_a_long_listing(imagemill, tmp_path, photos, monkeypatch):
    places = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out"]
    assert imagemill(*places)[2] == ""
    monkeypatch.setattr("imagemill.pipeline.plan.LOG_SECONDS", 0)
    monkeypatch.setattr("imagemill.pipeline.plan.ENTRIES_PER_CHUNK", 2)
    lines = re.findall(r"INFO (listed \d+ .*)\n", imagemill(*places)[2])
    assert lines == ["listed 2 images and 0 other files so far", "listed 3 images and 0 other files so far"]


def test_plan_warns_of_an_input_unknown_to_output(imagemill, tmp_path, crops):
    """Warn if OUTPUT has no row of any image of INPUT; refuse an image from another location."""
    output = compressed(tmp_path, {"a.png": crops[0][:28, :28]})

    def stderr_of(folder: str, *names: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            Image.fromarray(crops[1]).save(tmp_path / folder / name)
        code, _, err = imagemill("plan", "--task", "compress", "--input", tmp_path / folder, "--output", output.url)
        assert code == 0
        assert err.count("\n") == bool(err)
        return err

    rows = f"holds none of the images that {output.url} has rows of, which was made from {tmp_path}/in. Is it the right"
    assert f"{tmp_path}/other {rows}" in stderr_of("other", "b.png")
    warning = f"1 of its 2 images have rows that were made from {tmp_path}/in (for example a.png)"
    assert warning in stderr_of("other", "a.png")
    assert stderr_of("in") == ""
    (tmp_path / "in/a.png").unlink()
    assert f"{tmp_path}/in {rows} place, and complete?" in stderr_of("in")
    assert stderr_of("in", "c.png") == ""


@pytest.mark.usefixtures("ray_session")
def test_plan_shows_workers_on_a_cluster(imagemill, tmp_path, photos):
    places = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out", "--address", "auto"]
    code, out, _ = imagemill(*places)
    assert code == 0
    assert "1 worker of 1 CPU each; cluster: 1 CPU and 0 GPUs on 1 node" in out
    code, out, _ = imagemill(*places, "--json")
    assert json.loads(out)["workers"] == 1
    code, _, err = imagemill(*places, "--workers", 50)
    assert code == 2
    assert "pool.workers=50: there is room for 1 worker;" in err


def test_plan_compares_the_measured_share_with_the_last_run(imagemill, tmp_path, photos):
    assert imagemill("compress", photos, tmp_path / "out", "--limit", 2)[0] == 0
    plan = ["plan", "--task", "compress", "--input", photos, "--output", tmp_path / "out"]
    assert "measured" not in imagemill(*plan)[1]
    _, out, _ = imagemill(*plan, "--set", "quality=0")
    assert "images/s; it measured the quality of 100% of its images, this run 0%, which takes less time" in out
