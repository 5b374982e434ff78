"""`imagemill plan`, and what a plan warns of: nothing is done, all is said."""

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


def test_plan_says_of_a_bucket_what_a_run_says(imagemill, photos, rclone_bucket, monkeypatch):
    where = ["plan", "--task", "denoise", "--input", photos, "--output"]
    assert imagemill(*where, f"{rclone_bucket}/out")[0] == 0
    code, _, err = imagemill(*where, "s3://there-is-none/out")
    assert code == 5
    assert "s3://there-is-none/out: the bucket there-is-none does not exist: make it, or name another" in err
    assert err.count("\n") == 1
    assert imagemill("denoise", photos, "s3://there-is-none/out") == (code, "", err)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    code, _, err = imagemill(*where, f"{rclone_bucket}/out")
    assert code == 5
    assert "PermissionError" in err
    assert err.count("\n") == 1


def test_plan_says_which_kinds_of_files_are_no_images(imagemill, tmp_path, photos):
    where = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out"]
    assert "3 images, 0 other files " in imagemill(*where)[1]
    for name in ("a.txt", "b.txt", "README", *(f"x.k{number}" for number in range(6))):
        (photos / name).touch()
    assert "3 images, 9 other files (txt 2, k0 1, k1 1, k2 1, k3 1, other 3)" in imagemill(*where)[1]


def test_a_long_listing_says_how_far_it_is(imagemill, tmp_path, photos, monkeypatch):
    where = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out"]
    assert imagemill(*where)[2] == ""
    monkeypatch.setattr("imagemill.pipeline.plan.LOG_SECONDS", 0)
    monkeypatch.setattr("imagemill.pipeline.plan.LISTED_AT_A_TIME", 2)
    said = re.findall(r"INFO (listed \d+ .*)\n", imagemill(*where)[2])
    assert said == ["listed 2 images and 0 other files so far", "listed 3 images and 0 other files so far"]


def test_an_input_without_any_image_that_output_knows_is_a_warning(imagemill, tmp_path, crops):
    output = compressed(tmp_path, {"a.png": crops[0][:28, :28]})

    def said(folder: str, *names: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            Image.fromarray(crops[1]).save(tmp_path / folder / name)
        code, _, err = imagemill("plan", "--task", "compress", "--input", tmp_path / folder, "--output", output.url)
        assert code == 0
        assert err.count("\n") == bool(err)
        return err

    rows = f"holds none of the images that {output.url} has rows of, which was filled from {tmp_path}/in: is it the right"
    assert f"{tmp_path}/other {rows}" in said("other", "b.png")
    known = f"1 of its 2 images have rows that were made from {tmp_path}/in (for example a.png)"
    assert known in said("other", "a.png")
    assert said("in") == ""
    (tmp_path / "in/a.png").unlink()
    assert f"{tmp_path}/in {rows} place, and all there?" in said("in")
    assert said("in", "c.png") == ""


@pytest.mark.usefixtures("ray_session")
def test_plan_says_what_a_run_takes_of_a_cluster_and_whether_it_fits(imagemill, tmp_path, photos):
    where = ["plan", "--task", "denoise", "--input", photos, "--output", tmp_path / "out", "--address", "auto"]
    code, out, _ = imagemill(*where)
    assert code == 0
    assert "1 worker of 1 CPU each; cluster: 1 CPU and 0 GPUs on 1 node" in out
    code, _, err = imagemill(*where, "--set", "pool.workers=50")
    assert code == 2
    assert "pool.workers=50: there is room for 1 worker;" in err


@pytest.mark.usefixtures("ray_session")
def test_plan_says_where_the_last_run_measured_more_or_less_of_its_images(imagemill, tmp_path, photos):
    assert imagemill("compress", photos, tmp_path / "out", "--limit", 2)[0] == 0
    plan = ["plan", "--task", "compress", "--input", photos, "--output", tmp_path / "out"]
    assert "measured" not in imagemill(*plan)[1]
    _, out, _ = imagemill(*plan, "--set", "quality=0")
    assert "images/s, the quality of 100% of them measured; this one measures 0% and takes less" in out
