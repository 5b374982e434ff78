"""Latents of a run: decoding, measuring, entropy coding, damage and size."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.jobs.export import export
from imagemill.models import checkpoint as checkpoints
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.account import account
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.local_channel import LocalChannel
from imagemill.pipeline.errors import StorageError, VerificationError
from imagemill.pipeline.item import Item
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.parts import list_parts, read_part
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.resolve import build_plan, check_model, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.storage import Store
from imagemill.pipeline.worker import Worker
from tests.support.folders import fill, rows
from tests.support.run_processes import make_photos
from tests.support.worker_jobs import job_here


def test_latents_decode_to_the_reconstruction(tmp_path, crops):
    source, output, dest = tmp_path / "in", tmp_path / "out", tmp_path / "dest"
    fill(source, crops)
    record = run(RunConfig(task="compress", input=str(source), output=str(output), reconstruct=True))
    assert record["ok"] == 11
    # a.jpg is written as a.jpg.png and a.png as a.png, so the names do not collide.
    assert {"a.jpg.png", "a.png"} <= {p.name for p in (output / "images").iterdir()}
    decode_output(Store(str(output)), Store(str(dest)))
    for row in rows(output):
        with (
            Image.open(output / row["output_uri"]) as reconstruction,
            Image.open(tmp_path / "dest" / Path(row["output_uri"]).relative_to("images")) as decoded,
        ):
            assert (
                np.array_equal(np.asarray(reconstruction.convert("RGB")), np.asarray(decoded.convert("RGB")))
                or reconstruction.mode == "L"
            )
        assert row["latent_shape"][1:] == [-(-n // 8) for n in reconstruction.size[::-1]]
        assert row["bits_per_pixel"] > 0
    sizes = sum(p.stat().st_size for p in (output / "results").iterdir())
    pixels = sum(r["orig_width"] * r["orig_height"] for r in rows(output))
    assert record["quality"]["bits_per_pixel_on_disk"] == pytest.approx(sizes * 8 / pixels)


def test_latents_do_not_depend_on_quality_figures(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    config = RunConfig(task="compress", input=str(source), output=str(output))
    record = run(config.model_copy(update={"quality": 0}))
    assert "psnr_db" not in record["quality"]
    assert {row["psnr_db"] for row in rows(output)} == {None}
    assert verify(Store(str(output))).problems == []
    assert run(config)["planned"] == 0
    codes = {row["rel_path"]: row["latent_crc32"] for row in rows(output)}
    run(config.model_copy(update={"output": str(tmp_path / "other"), "quality": len(codes) // 2}))
    other_rows = rows(tmp_path / "other")
    assert {row["rel_path"]: row["latent_crc32"] for row in other_rows} == codes
    measured_paths = {row["rel_path"] for row in other_rows if row["psnr_db"] is not None}
    assert {row["rel_path"] for row in other_rows if row["bits_per_pixel"] is not None} == measured_paths
    assert 0 < len(measured_paths) < len(codes)


def test_quality_sample_is_chosen_by_image_id():
    items = [Item({"image_id": image_id(f"{n}.jpg")}) for n in range(10_000)]
    small_sample, large_sample = ({n for n, item in enumerate(items) if item.is_in_sample(share)} for share in (0.02, 0.3))
    assert small_sample < large_sample
    assert 150 < len(small_sample) < 250
    assert 2_800 < len(large_sample) < 3_200
    assert all(item.is_in_sample(1.0) for item in items)
    assert not any(item.is_in_sample(0.0) for item in items)


def test_coded_and_plain_latents_share_an_output(tmp_path, crops):
    source, output, dest = tmp_path / "in", tmp_path / "out", tmp_path / "dest"
    fill(source, crops)
    plain_config = RunConfig(task="compress", input=str(source), output=str(output), reconstruct=True)
    record = run(plain_config)
    plain_rows = {row["rel_path"]: row for row in rows(output)}
    for part in (output / "results").iterdir():
        # Earlier versions wrote parts without this column.
        pq.write_table(pq.read_table(part).drop_columns(["latent_payload"]), part)
    shutil.copy(source / "a.png", source / "late.png")
    coded_record = run(plain_config.model_copy(update={"params": {"coding": "coded"}, "limit": 9}))
    assert coded_record["ok"] + coded_record["rejected"] == 9
    coded_rows = [row for row in rows(output) if row.get("latent_payload")]
    assert len(coded_rows) == coded_record["ok"] > 4
    for row in coded_rows:
        assert row["latent"] is None
        assert row["bits_per_pixel"] == pytest.approx(
            len(row["latent_payload"]) * 8 / (row["orig_width"] * row["orig_height"])
        )
        if row["rel_path"] in plain_rows:
            assert row["latent_crc32"] == plain_rows[row["rel_path"]]["latent_crc32"]
    assert record["quality"]["psnr_db"] > 0
    assert verify(Store(str(output))).problems == []

    decode_output(Store(str(output)), Store(str(dest)))
    newest = {row["rel_path"]: row for row in sorted(rows(output), key=lambda r: r["fence"])}
    for row in newest.values():
        name = Path(row["output_uri"]).relative_to("images")
        assert (dest / name).read_bytes() == (output / "images" / name).read_bytes()


def test_damaged_payload_is_named_and_not_decoded(tmp_path, crops):
    source, output, dest = tmp_path / "in", tmp_path / "out", tmp_path / "dest"
    source.mkdir()
    for n in range(3):
        Image.fromarray(crops[n]).save(source / f"{n}.png")
    run(RunConfig(task="compress", input=str(source), output=str(output), params={"coding": "coded"}, rows_per_part=9))
    damage = {
        "0.png": lambda data: data[: len(data) // 8 * 4],
        "1.png": lambda data: data[:40] + bytes([data[40] ^ 16]) + data[41:],
    }
    for part in (output / "results").iterdir():
        table = pq.read_table(part)
        payloads = [
            damage.get(name, bytes)(data)
            for name, data in zip(table["rel_path"].to_pylist(), table["latent_payload"].to_pylist(), strict=True)
        ]
        column = table.schema.get_field_index("latent_payload")
        pq.write_table(table.set_column(column, "latent_payload", pa.array(payloads, pa.binary())), part)
    verification = verify(Store(str(output)))
    assert (len(verification.problems), verification.latents) == (2, 1)
    with pytest.raises(VerificationError, match=r"[01]\.png"):
        decode_output(Store(str(output)), Store(str(dest)))
    assert [p.name for p in dest.glob("*.png")] == ["2.png"]


def test_run_repeats_images_of_a_removed_part(tmp_path, crops):
    make_photos(Store(str(tmp_path / "in")), 4, crops)
    output = Store(str(tmp_path / "out"))
    config = RunConfig(task="compress", input=str(tmp_path / "in"), output=output.url, rows_per_part=1)
    run(config)
    damaged_path = list_parts(output, "results")[1]
    output.write(damaged_path, output.read(damaged_path)[:-1])
    with pytest.raises(StorageError, match=f"{damaged_path}: a damaged part .*Move it out of OUTPUT"):
        run(config)
    assert "Move it out of OUTPUT" in verify(output).problems[0]
    assert export(output, Store(str(tmp_path / "export")))["rows"] == 3
    Path(output.full(damaged_path)).rename(tmp_path / "damaged.parquet")
    assert run(config)["ok"] == 1
    assert verify(output).problems == []
    assert export(output, Store(str(tmp_path / "whole")))["rows"] == 4


def compress_here(source: Store, output: Store) -> None:
    """Compress all images of an input in this process, with the code of a worker."""
    resolved = resolve(RunConfig(task="compress", input=source.url, output=output.url, quality=0))
    with Lease(output) as lease:
        plan = build_plan(resolved)
        assert Worker(job_here(resolved, lease.fencing_token), LocalChannel()).process_block(plan.todo) == len(plan.todo)
        summary = account(output, plan, [])
    assert (summary.ok, summary.rejected, summary.doubles_dropped) == (len(plan.todo), 0, 0)
    assert verify(output).problems == []


@pytest.mark.parametrize(("rows_per_part", "most"), [(250, 1), (7, 4)])
def test_run_merges_its_small_parts(tmp_path, crops, rows_per_part, most):
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 16, crops)
    config = RunConfig(task="compress", input=source.url, output=output.url, rows_per_part=rows_per_part, engine="local")
    record = run(config)
    sizes = [len(read_part(output, path, None)) for path in list_parts(output, "results")]
    assert sum(sizes) == record["ok"] == record["rows"] == 16
    assert len(sizes) <= most
    assert max(sizes) <= rows_per_part
    files = list((tmp_path / "out/results").iterdir())
    assert record["parquet_bytes"] == sum(path.stat().st_size for path in files)
    if most == 1:  # else a part may have been too large to be merged with others
        table = pq.read_table(files[0], schema=pq.read_schema(files[0]))
        assert len(parquet_bytes(table, 16)) == files[0].stat().st_size < len(parquet_bytes(table, 9))
    assert verify(output).problems == []
    assert run(config)["planned"] == 0


def test_failed_merge_leaves_the_parts(tmp_path, crops, monkeypatch, caplog):
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 16, crops)

    def fail(*arguments):
        raise StorageError("no space")

    monkeypatch.setattr("imagemill.pipeline.output.compact.replace_parts", fail)
    config = RunConfig(task="compress", input=source.url, output=output.url, engine="local")
    assert run(config)["ok"] == 16
    assert "parts of this run were not merged: StorageError: no space" in caplog.text
    assert len(list_parts(output, "results")) > 1
    assert verify(output).problems == []


def test_large_rows_are_committed_before_the_block_ends(tmp_path, crops, monkeypatch):
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 6, crops)
    monkeypatch.setattr("imagemill.pipeline.block_processor.ROWS_BYTES", 1)
    compress_here(source, output)
    assert len(list_parts(output, "results")) == 6
    assert verify(output).latents == 6


def test_latents_too_large_for_lists_are_read(tmp_path, crops, monkeypatch):
    source, large_output, list_output = (Store(str(tmp_path / name)) for name in ("in", "large", "lists"))
    make_photos(source, 2, crops)
    compress_here(source, list_output)
    monkeypatch.setattr("imagemill.pipeline.schema.LIST_VALUES", 1)
    compress_here(source, large_output)
    large_rows = rows(tmp_path / "large")
    assert [row["latent"] for row in large_rows] == [None, None]
    assert all(row["bits_per_pixel"] > 0 for row in large_rows)
    for output, name in ((list_output, "of-lists"), (large_output, "of-large")):
        decode_output(output, Store(str(tmp_path / name / "decoded")))
        export(output, Store(str(tmp_path / name / "export")))
    decoded, exported = ([tmp_path / o / name for o in ("of-lists", "of-large")] for name in ("decoded", "export"))
    files = [[path.read_bytes() for path in sorted(folder.rglob("*.png"))] for folder in decoded]
    assert files[0] == files[1]
    assert len(files[0]) == 2
    values = [pq.read_table(folder / "latents").sort_by("rel_path")["latent"] for folder in exported]
    assert values[0].equals(values[1])


def test_coding_without_tables_is_refused_first(tmp_path, crops):
    card = checkpoints.read_card("compress-small")
    model = checkpoints.build(card, checkpoints.read_weights("compress-small", card))
    model.entropy = None
    checkpoints.save(str(tmp_path / "older"), model, card.model_dump(exclude={"sha256"}))
    output = Store(str(tmp_path / "out"))
    make_photos(Store(str(tmp_path / "in")), 1, crops)
    config = RunConfig(task="compress", input=str(tmp_path / "in"), output=output.url, checkpoint=str(tmp_path / "older"))
    check_model(resolve(config))
    record = RunRecord()
    with pytest.raises(CheckpointError, match="no entropy tables"):
        run(config.model_copy(update={"params": {"coding": "coded"}}), record)
    assert record.exit_code == CheckpointError.exit_code == 2
    assert not [e.path for e in output.entries() if e.path.startswith(("results/", "images/"))]
