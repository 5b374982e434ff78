"""Ownership of locations: a run replaces only files that runs wrote."""

import shutil
import time
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline import storage
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.ownership import FOLDERS, check_output, is_output
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, check_output_task, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.folders import files_below, rows
from tests.support.worker_jobs import job_here, processor_here


def save(folder: Path, crops: list[np.ndarray], *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, crop in zip(names, crops, strict=False):
        Image.fromarray(crop).save(folder / name)
    return folder


def denoise(source: object, output: object, **options: object) -> RunConfig:
    return RunConfig.model_validate({"task": "denoise", "input": str(source), "output": str(output), **options})


@pytest.mark.parametrize(
    ("any_url", "folder"),
    [*(("local", folder) for folder in FOLDERS), ("moto", "images"), ("rclone", "runs")],
    indirect=["any_url"],
)
def test_output_refuses_a_folder_of_the_user(any_url, folder):
    place = Store(any_url)
    check_output(place)
    place.write("README.md", b"my project")
    place.write("photos/a.png", b"mine")
    check_output(place)
    place.write(f"{folder}/deep/er.png", b"mine")
    with pytest.raises(ConfigError, match=f"output {place.url}: {folder}/ contains files that no run of imagemill wrote"):
        check_output(place)


def test_output_accepts_empty_folders(tmp_path):
    (tmp_path / "images/empty").mkdir(parents=True)
    check_output(Store(str(tmp_path)))
    (tmp_path / "results").write_text("a file of this name")
    with pytest.raises(ConfigError, match="results/ contains"):
        check_output(Store(str(tmp_path)))


def test_killed_first_run_leaves_an_output(any_url):
    """The lease claim is the first file that a run writes."""
    place = Store(any_url)
    with Lease(place):
        pass
    place.write("images/a.png", b"half of a run")
    assert is_output(place)
    check_output(place)


def test_export_is_not_an_output(any_url):
    place = Store(any_url)
    with Lease(place):
        place.write("UNFINISHED", b"")
        place.write("latents/part-00000.parquet", b"")
    with pytest.raises(ConfigError, match="is an export"):
        check_output(place)


def test_first_run_into_a_project_changes_nothing(tmp_path, crops):
    source = save(tmp_path / "in", crops, "a.png", "b.png")
    project = tmp_path / "project"
    save(project / "images", crops[5:], "a.png")
    files_before = files_below(tmp_path)
    with pytest.raises(ConfigError, match="images/ contains files"):
        run(denoise(source, project))
    with pytest.raises(ConfigError, match="images/ contains files"):
        check_output_task(resolve(denoise(source, project)))
    assert files_below(tmp_path) == files_before


def test_output_continues_after_partial_loss(tmp_path, crops):
    """First `runs/` is deleted, then all rows, so that images have no rows."""
    source, output = save(tmp_path / "in", crops, "a.png"), tmp_path / "out"
    config = denoise(source, output)
    run(config)
    shutil.rmtree(output / "runs")
    assert run(config)["planned"] == 0
    shutil.rmtree(output / "runs")
    shutil.rmtree(output / "results")
    assert run(config)["ok"] == 1
    assert verify(Store(str(output))).problems == []


def test_other_memory_card_needs_allow_new_input(tmp_path, crops):
    first_input = save(tmp_path / "one/DCIM", crops, "1.png", "2.png")
    other_input = save(tmp_path / "other/DCIM", crops[5:], "1.png", "3.png")
    output = tmp_path / "out"
    run(denoise(first_input, output))
    files_before = files_below(output / "images")
    with pytest.raises(ConfigError, match=r"1 of its 2 images .* from .*one/DCIM \(for example 1\.png\)"):
        run(denoise(other_input, output))
    # A second attempt fails as well, because a failed run does not record its input.
    with pytest.raises(ConfigError, match="allow_new_input"):
        run(denoise(other_input, output))
    assert files_below(output / "images") == files_before
    assert {row["rel_path"] for row in rows(output)} == {"1.png", "2.png"}

    assert run(denoise(other_input, output, allow_new_input=True))["ok"] == 2
    # From now on its location is recorded, and the earlier location counts as new.
    assert run(denoise(other_input, output))["planned"] == 0
    with pytest.raises(ConfigError, match=r"1 of its 2 images"):
        run(denoise(first_input, output))
    assert verify(Store(str(output))).problems == []


def test_moved_input_is_allowed_once(tmp_path, crops):
    """Unchanged images are not processed again, although their rows name the old location."""
    source, output = save(tmp_path / "in", crops, "1.png", "2.png"), tmp_path / "out"
    run(denoise(source, output))
    source.rename(tmp_path / "moved")
    config = denoise(tmp_path / "moved", output)
    assert build_plan(resolve(config)).new_input
    record = run(config.model_copy(update={"allow_new_input": True}))
    assert (record["planned"], record["moved_from"]) == (0, {str(source): 2})
    save(tmp_path / "moved", crops[7:], "3.png")
    assert run(config)["ok"] == 1
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert build_plan(resolve(denoise(tmp_path / "link", output))).new_input is None


def test_file_of_the_user_among_images_stays(tmp_path, crops):
    """The image is rejected because of the file, and processed once the file is gone."""
    source, output = save(tmp_path / "in", crops, "1.png"), tmp_path / "out"
    config = denoise(source, output, max_reject_fraction=1)
    run(config)
    save(source, crops[3:], "2.png", "3.png")
    (output / "images/2.png").write_bytes(b"mine")
    for retry in (False, True):
        record = run(config.model_copy(update={"retry_failed": retry}))
        assert record["reasons"] == {"FileExists": 1}
    assert (output / "images/2.png").read_bytes() == b"mine"
    assert (output / "images/3.png").exists()
    (output / "images/2.png").unlink()
    assert run(config.model_copy(update={"retry_failed": True}))["ok"] == 1
    assert verify(Store(str(output))).problems == []


def test_images_without_rows_are_replaced(tmp_path, crops):
    """Such images remain after an interrupted run or if the user moves parts away."""
    source, output = save(tmp_path / "in", crops, "1.png", "2.png"), tmp_path / "out"
    run(denoise(source, output))
    for part in (output / "results").iterdir():
        part.unlink()
    assert run(denoise(source, output, params={"sigma": 9}))["ok"] == 2

    save(source, crops[3:], "3.png")
    (output / "runs/20990101T000000Z-abcdef").mkdir()
    (output / "runs/20990101T000000Z-abcdef/config.yaml").write_text("of a machine whose clock is wrong")
    (output / "images/3.png").write_bytes(b"of the run that was cut off")
    assert run(denoise(source, output, params={"sigma": 9}))["ok"] == 1
    assert verify(Store(str(output))).problems == []


@pytest.mark.parametrize("place", ["local", "moto"])
def test_file_older_than_the_first_claim_is_kept(request, tmp_path, crops, monkeypatch, place):
    """On disk and in a bucket, a run replaces only files that are newer than the first claim.

    Buckets have times of whole seconds. The clock of this bucket advances by a second from request to request, as on a busy
    machine: the ages of two objects must not be compared.
    """
    seconds = count()
    date = storage.parsedate_to_datetime
    monkeypatch.setattr(storage, "parsedate_to_datetime", lambda text: date(text) + timedelta(seconds=next(seconds)))
    folder_url = tmp_path if place == "local" else request.getfixturevalue("moto_bucket")
    job = resolve(denoise(save(tmp_path / "in", crops, "1.png", "2.png"), f"{folder_url}/out"))
    job.output.write("images/1.png", b"mine")
    time.sleep(1.1)  # Buckets have times of whole seconds.
    job.output.write("runs/mark", b"")
    job.output.write("images/2.png", b"of an earlier try")
    worker = processor_here(replace(job_here(job), oldest_unaccounted_file="runs/mark"))
    rows = {row["rel_path"]: row for table in worker(build_plan(job).todo) for row in table.to_pylist()}
    assert (rows["1.png"]["error_class"], rows["2.png"]["error_class"]) == ("FileExists", None)
    assert job.output.read("images/1.png") == b"mine"
    assert job.output.read("images/2.png")[1:4] == b"PNG"
