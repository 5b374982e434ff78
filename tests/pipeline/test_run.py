"""Runs over folders and buckets: each file ends exactly once, and a failed run says why."""

import json
import os
import shutil
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.pipeline.account import account
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, OutputHeld, StorageError, TooManyRejects
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.schema import new_run_id
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason
from tests.support.folders import files_below, fill, rows


def test_run_ends_each_file_as_one_row_or_reject(tmp_path, crops, engine):
    expected = fill(tmp_path / "in", crops)
    output = tmp_path / "out"
    record = run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(output), engine=engine))
    accepted_names = {name for name, error in expected.items() if not error}
    assert {r["rel_path"] for r in rows(output)} == accepted_names
    assert {r["rel_path"]: r["error_class"] for r in rows(output, "rejects")} == {n: e for n, e in expected.items() if e}
    assert (record["planned"], record["ok"], record["rejected"], record["ignored"]) == (14, 11, 3, 1)
    assert json.loads((output / "runs" / record["run_id"] / "run.json").read_text())["exit_reason"] == "done"
    assert verify(Store(str(output))).problems == []
    for row in rows(output):
        source_path, output_path = tmp_path / "in" / row["rel_path"], output / row["output_uri"]
        with Image.open(source_path) as original, Image.open(output_path) as result:
            is_rotated = row["exif_orientation"] == 6
            assert result.size == (original.size[::-1] if is_rotated else original.size)
            assert result.format == ("PNG" if original.format == "GIF" else original.format)
            if original.mode in ("L", "RGBA"):
                assert result.mode == original.mode
    assert (output / "images/palette.gif.png").exists()


def test_run_repeats_only_a_changed_file(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    run(config)
    first_files = {name: t for name, t in files_below(output).items() if not name.startswith("runs/")}
    assert run(config)["planned"] == 0
    assert {name: t for name, t in files_below(output).items() if not name.startswith("runs/")} == first_files

    Image.fromarray(crops[12]).save(source / "a.jpg")
    Image.fromarray(crops[13]).save(source / "cut.jpg")
    second_record = run(config)
    assert (second_record["planned"], second_record["ok"], second_record["rejects_waiting"]) == (2, 2, 2)
    assert len([r for r in rows(output) if r["rel_path"] == "a.jpg"]) == 2
    assert verify(Store(str(output))).problems == []

    assert build_plan(resolve(config.model_copy(update={"params": {"sigma": 10}}))).done == 0
    assert len(build_plan(resolve(config.model_copy(update={"retry_failed": True}))).todo) == 2


def run_two_images(tmp_path, crops):
    """Run over an input of two images; return the input, the output and the config."""
    source, output = tmp_path / "in", Store(str(tmp_path / "out"))
    source.mkdir()
    for number in range(2):
        Image.fromarray(crops[number]).save(source / f"{number}.png")
    config = RunConfig(task="denoise", input=str(source), output=output.url, max_reject_fraction=1)
    run(config)
    return source, output, config


def test_run_keeps_the_row_of_a_file_that_broke(tmp_path, crops, capsys):
    source, output, config = run_two_images(tmp_path, crops)
    (source / "0.png").write_bytes((source / "0.png").read_bytes()[:500])
    Image.fromarray(crops[2]).save(source / "1.png")
    record = run(config)
    assert (record["planned"], record["ok"], record["rejected"]) == (2, 1, 1)
    state = read_snapshot(output)
    assert (len(state), state.waiting) == (2, 0)
    verification = verify(output)
    assert (verification.problems, verification.images, verification.waiting) == ([], 2, 0)
    assert run(config)["planned"] == 0
    Image.fromarray(crops[3]).save(source / "0.png")
    assert run(config)["ok"] == 1
    assert (len(read_snapshot(output)), verify(output).problems) == (2, [])


def test_run_repeats_a_row_with_an_overwritten_file(tmp_path, crops, monkeypatch):
    source, output, config = run_two_images(tmp_path, crops)

    def overwrite_and_account(output, *args):
        output.write("images/0.png", b"put before its block was begun again")
        return account(output, *args)

    monkeypatch.setattr("imagemill.pipeline.run.account", overwrite_and_account)
    for path in source.iterdir():
        path.write_bytes(b"broken when it was read again")
    assert run(config)["rejected"] == 2
    verification = verify(output)
    assert (verification.problems, verification.files, verification.waiting) == ([], 1, 1)


def test_run_keeps_rows_when_runs_folder_is_lost(tmp_path, crops, caplog):
    source, output = tmp_path / "in", Store(str(tmp_path / "out"))
    source.mkdir()
    Image.fromarray(crops[0]).save(source / "a.png")
    config = RunConfig(task="denoise", input=str(source), output=output.url)
    for number in range(3):
        Image.fromarray(crops[number]).save(source / "a.png")
        run(config)
    shutil.rmtree(tmp_path / "out/runs")
    Image.fromarray(crops[3]).save(source / "a.png")
    assert run(config)["fence"] > 3
    assert "claims" in caplog.text
    assert run(config)["planned"] == 0
    assert verify(output).problems == []


def test_worker_writes_nothing_after_losing_the_lease(tmp_path, crops, engine):
    fill(tmp_path / "in", crops)
    output = Store(str(tmp_path / "out"))

    def claim_next_number() -> None:
        """Claim the next lease number while the workers start, like a run that takes over."""
        while not list((tmp_path / "out").glob("runs/*/config.yaml")):
            time.sleep(0.01)
        assert output.create("runs/lease/00000002.json", b"{}")

    other_run = threading.Thread(target=claim_next_number)
    other_run.start()
    with pytest.raises(OutputHeld, match="another run took over"):
        run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=output.url, engine=engine))
    other_run.join()
    assert not (tmp_path / "out/images").exists()
    assert not rows(tmp_path / "out")


def test_run_id_is_unique(tmp_path, crops):
    fill(tmp_path / "in", crops)
    config = RunConfig(
        task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out"), limit=1, limit_order="first"
    )
    for malformed_id in ("lease", "../../x", "mine"):
        with pytest.raises(ConfigError, match=r"run_id=.*must look like"):
            run(config, run_id=malformed_id)
    assert not (tmp_path / "out").exists()
    run(config, run_id="20260301T000000Z-abc123")
    with pytest.raises(ConfigError, match="already has a run with this id"):
        run(config, run_id="20260301T000000Z-abc123")


def test_run_reads_and_writes_buckets(rclone_bucket, tmp_path, crops, engine):
    source, output = Store(f"{rclone_bucket}/in"), Store(f"{rclone_bucket}/out")
    expected = fill(tmp_path / "in", crops)
    for name in expected:
        if (tmp_path / "in" / name).stat().st_size:
            source.write(name, (tmp_path / "in" / name).read_bytes())
    record = run(RunConfig(task="denoise", input=source.url, output=output.url, engine=engine))
    assert (record["ok"], record["rejected"]) == (11, 2)
    assert verify(output).problems == []
    assert run(RunConfig(task="denoise", input=source.url, output=output.url))["planned"] == 0


def test_run_reports_repeated_rejects_and_empty_inputs(tmp_path, crops, caplog):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(crops[0]).save(source / "good.png")
    for name in "abc":
        (source / f"{name}.png").write_bytes(b"this is text")
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    with pytest.raises(TooManyRejects):
        run(config)
    Image.fromarray(crops[1]).save(source / "a.png")
    second_record = run(config.model_copy(update={"retry_failed": True}))
    # A repaired file has a new version, so a run without --retry processes it.
    assert (second_record["planned"], second_record["rejected"], second_record["exit_code"]) == (2, 2, 0)
    assert run(config)["ok"] == 1
    for path in source.iterdir():
        path.unlink()
    assert "Is it the right place" not in caplog.text
    assert (run(config)["found"], run(config)["exit_code"]) == (0, 0)
    assert "Is it the right place, and complete?" in caplog.text


def test_run_limits_images_and_rejects(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    assert run(config.model_copy(update={"limit": 2}))["planned"] == 2
    with pytest.raises(TooManyRejects, match="max_reject_fraction"):
        run(config.model_copy(update={"max_pixels": 4000, "max_reject_fraction": 0.1}))
    tiny = [r for r in rows(output, "rejects") if r["error_class"] == "TooManyPixels"]
    assert tiny
    assert "over max_pixels=4000" in tiny[0]["error"]
    # Rows that were committed before the run failed stay committed.
    assert len(rows(output)) + len(rows(output, "rejects")) == 14


def test_known_rejects_fail_a_run_only_in_an_outage(tmp_path, crops):
    """A run tries transient rejects again. A few of them must not fail each run without new images."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(3):
        Image.fromarray(crops[number]).save(source / f"{number}.png")
    (source / "away.png").write_bytes(b"broken")

    def make_rejects_transient() -> None:
        for part in (output / "rejects").glob("*.parquet"):
            rejects = pq.read_table(part)
            index = rejects.schema.get_field_index("transient")
            pq.write_table(rejects.set_column(index, "transient", pa.array([True] * len(rejects))), part)

    config = RunConfig(task="denoise", input=str(source), output=str(output), max_reject_fraction=0.3)
    run(config)
    make_rejects_transient()
    record = run(config)
    assert (record["planned"], record["rejected"], record["exit_code"]) == (1, 1, 0)
    make_rejects_transient()
    with pytest.raises(TooManyRejects, match=r"^1 of 4 images were rejected \(UnknownFormat 1\), more than"):
        run(config.model_copy(update={"max_reject_fraction": 0.2}))


def test_output_belongs_to_one_task(tmp_path, crops):
    fill(tmp_path / "in", crops[:11])
    run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out"), limit=1, limit_order="first"))
    with pytest.raises(ConfigError, match="belongs to the task denoise"):
        run(RunConfig(task="compress", input=str(tmp_path / "in"), output=str(tmp_path / "out")))


def test_run_of_an_empty_folder_does_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    record = run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    assert (record["planned"], record["exit_code"]) == (0, 0)


def test_run_reports_an_unwritable_output(tmp_path, crops):
    fill(tmp_path / "in", crops)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "file" / "out")))


def test_run_records_a_disk_error(tmp_path, crops):
    (tmp_path / "in").mkdir()
    Image.fromarray(crops[0]).save(tmp_path / "in/a.png")
    output = Store(str(tmp_path / "out"))
    output.write(f"runs/{new_run_id()}/config.yaml", b"of an earlier run: the place is an OUTPUT")
    output.write("checkpoints", b"a file in the way of a folder")
    record = RunRecord()
    with pytest.raises(StorageError) as error:
        run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out")), record)
    stored_record = json.loads((tmp_path / f"out/runs/{record.run_id}/run.json").read_text())
    assert stored_record["exit_code"] == error.value.exit_code == 5
    assert stored_record["exit_reason"] == reason(error.value)


def test_run_retries_a_file_that_disappeared(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    os.symlink(tmp_path / "nowhere", source / "dangling.jpg")
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    record = run(config)
    assert record["planned"] == record["ok"] + record["rejected"]
