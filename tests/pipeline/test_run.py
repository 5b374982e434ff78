import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import make_photos
from PIL import Image

from jobs.decode import decode_output
from jobs.export import export
from models import checkpoint as checkpoints
from pipeline.account import account
from pipeline.actor import Actor
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, StorageError, TooManyRejects, VerificationError
from pipeline.item import Item
from pipeline.job import Job
from pipeline.output.committed import part_paths
from pipeline.output.kept import keep_checkpoint
from pipeline.output.lease import Lease
from pipeline.output.verify import verify
from pipeline.resolve import check_model, plan_of, resolve
from pipeline.run import run
from pipeline.schema import image_id
from pipeline.storage import Store

pytestmark = pytest.mark.usefixtures("ray_session")


def fill(folder: Path, crops: list[np.ndarray]) -> dict[str, str]:
    """Good and bad files of many kinds; gives the expected error class of each ('' for a good one)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(c) for c in crops]
    good = {
        "a.jpg": images[0],
        "a.png": images[1].crop((0, 0, 77, 51)),
        "_leading/.hidden.png": images[2].crop((3, 3, 4, 4)),
        "deep/er/ünï cödé %41#.jpeg": images[3],
        "gray.png": images[4].convert("L"),
        "alpha.png": images[5].convert("RGBA"),
        "palette.gif": images[6].quantize(16),
        "cmyk.jpg": images[7].convert("CMYK"),
        "tall.webp": images[8].crop((0, 0, 16, 96)),
        "x.tiff": images[9],
    }
    for name, image in good.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    Image.fromarray(crops[10]).save(folder / "turned.jpg", exif=exif_of(6))
    whole = (folder / "a.jpg").read_bytes()
    bad = {"cut.jpg": whole[: len(whole) // 2], "text.jpg": b"this is text", "empty.png": b""}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("no image")
    classes = {"cut.jpg": "BrokenImage", "text.jpg": "UnknownFormat", "empty.png": "EmptyFile"}
    return dict.fromkeys([*good, "turned.jpg"], "") | classes


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def rows(output: Path, folder: str = "results") -> list[dict]:
    return [row for part in sorted((output / folder).glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_every_file_ends_as_one_row_or_one_reject(tmp_path, crops):
    expected = fill(tmp_path / "in", crops)
    output = tmp_path / "out"
    record = run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(output)))
    good = {name for name, error in expected.items() if not error}
    assert {r["rel_path"] for r in rows(output)} == good
    assert {r["rel_path"]: r["error_class"] for r in rows(output, "rejects")} == {n: e for n, e in expected.items() if e}
    assert (record["planned"], record["ok"], record["rejected"], record["ignored"]) == (14, 11, 3, 1)
    assert json.loads((output / "runs" / record["run_id"] / "run.json").read_text())["exit_reason"] == "done"
    assert verify(Store(str(output))).problems == []
    for row in rows(output):
        source, made = tmp_path / "in" / row["rel_path"], output / row["output_uri"]
        with Image.open(source) as before, Image.open(made) as after:
            turned = row["exif_orientation"] == 6
            assert after.size == (before.size[::-1] if turned else before.size)
            assert after.format == ("PNG" if before.format == "GIF" else before.format)
            if before.mode in ("L", "RGBA"):
                assert after.mode == before.mode
    assert (output / "images/palette.gif.png").exists()


def test_a_second_run_does_nothing_and_a_changed_file_is_done_again(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    run(config)
    before = {name: t for name, t in files_below(output).items() if not name.startswith("runs/")}
    assert run(config)["planned"] == 0
    assert {name: t for name, t in files_below(output).items() if not name.startswith("runs/")} == before

    Image.fromarray(crops[12]).save(source / "a.jpg")
    Image.fromarray(crops[13]).save(source / "cut.jpg")
    again = run(config)
    assert (again["planned"], again["ok"], again["rejects_waiting"]) == (2, 2, 2)
    assert len([r for r in rows(output) if r["rel_path"] == "a.jpg"]) == 2
    assert verify(Store(str(output))).problems == []

    assert plan_of(resolve(config.model_copy(update={"params": {"sigma": 10}}))).done == 0
    assert len(plan_of(resolve(config.model_copy(update={"retry": True}))).todo) == 2


def test_latents_decode_to_what_the_run_reconstructed(tmp_path, crops):
    source, output, dest = tmp_path / "in", tmp_path / "out", tmp_path / "dest"
    fill(source, crops)
    record = run(RunConfig(task="compress", input=str(source), output=str(output), reconstruct=True))
    assert record["ok"] == 11
    # a.jpg is written as a.jpg.png and a.png as a.png: they do not meet.
    assert {"a.jpg.png", "a.png"} <= {p.name for p in (output / "images").iterdir()}
    decode_output(Store(str(output)), Store(str(dest)))
    for row in rows(output):
        with (
            Image.open(output / row["output_uri"]) as made,
            Image.open(tmp_path / "dest" / Path(row["output_uri"]).relative_to("images")) as decoded,
        ):
            assert np.array_equal(np.asarray(made.convert("RGB")), np.asarray(decoded.convert("RGB"))) or made.mode == "L"
        assert row["latent_shape"][1:] == [-(-n // 8) for n in made.size[::-1]]
        assert row["bits_per_pixel"] > 0
    sizes = sum(p.stat().st_size for p in (output / "results").iterdir())
    pixels = sum(r["orig_width"] * r["orig_height"] for r in rows(output))
    assert record["quality"]["bits_per_pixel_on_disk"] == pytest.approx(sizes * 8 / pixels)


def test_latents_without_figures_of_quality_are_the_same_and_not_made_again(tmp_path, crops):
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
    other = rows(tmp_path / "other")
    assert {row["rel_path"]: row["latent_crc32"] for row in other} == codes
    measured = {row["rel_path"] for row in other if row["psnr_db"] is not None}
    assert {row["rel_path"] for row in other if row["bits_per_pixel"] is not None} == measured
    assert 0 < len(measured) < len(codes)


def test_which_images_are_measured_is_decided_by_their_identities():
    items = [Item({"image_id": image_id(f"{n}.jpg")}) for n in range(10_000)]
    few, many = ({n for n, item in enumerate(items) if item.among(share)} for share in (0.02, 0.3))
    assert few < many
    assert 150 < len(few) < 250
    assert 2_800 < len(many) < 3_200
    assert all(item.among(1.0) for item in items)
    assert not any(item.among(0.0) for item in items)


def test_coded_and_plain_latents_share_an_output_and_decode_to_what_the_run_reconstructed(tmp_path, crops):
    source, output, dest = tmp_path / "in", tmp_path / "out", tmp_path / "dest"
    fill(source, crops)
    plain = RunConfig(task="compress", input=str(source), output=str(output), reconstruct=True)
    record = run(plain)
    before = {row["rel_path"]: row for row in rows(output)}
    for part in (output / "results").iterdir():
        # As versions before this one wrote it.
        pq.write_table(pq.read_table(part).drop_columns(["latent_payload"]), part)
    shutil.copy(source / "a.png", source / "late.png")
    coded = run(plain.model_copy(update={"params": {"coding": "coded"}, "limit": 9}))
    assert coded["ok"] + coded["rejected"] == 9
    made = [row for row in rows(output) if row.get("latent_payload")]
    assert len(made) == coded["ok"] > 4
    for row in made:
        assert row["latent"] is None
        assert row["bits_per_pixel"] == pytest.approx(
            len(row["latent_payload"]) * 8 / (row["orig_width"] * row["orig_height"])
        )
        if row["rel_path"] in before:
            assert row["latent_crc32"] == before[row["rel_path"]]["latent_crc32"]
    assert record["quality"]["psnr_db"] > 0
    assert verify(Store(str(output))).problems == []

    decode_output(Store(str(output)), Store(str(dest)))
    newest = {row["rel_path"]: row for row in sorted(rows(output), key=lambda r: r["fence"])}
    for row in newest.values():
        name = Path(row["output_uri"]).relative_to("images")
        assert (dest / name).read_bytes() == (output / "images" / name).read_bytes()


def test_a_damaged_payload_is_named_and_never_decoded(tmp_path, crops):
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
    seen = verify(Store(str(output)))
    assert (len(seen.problems), seen.latents) == (2, 1)
    with pytest.raises(VerificationError, match=r"[01]\.png"):
        decode_output(Store(str(output)), Store(str(dest)))
    assert [p.name for p in dest.iterdir()] == ["2.png"]


def compressed_here(source: Store, output: Store) -> None:
    """An actor's work on all of a source, in this process."""
    resolved = resolve(RunConfig(task="compress", input=source.url, output=output.url, quality=0))
    with Lease(output) as lease:
        keep_checkpoint(output, resolved.card, resolved.weights)
        lineage = dict.fromkeys(("task", "model_id", "checkpoint_sha256", "config_sha256", "parameters"), "-")
        lineage |= {"task": "compress", "checkpoint_sha256": resolved.card.sha256}
        job = Job(
            task="compress",
            params={},
            checkpoint_sha256=resolved.card.sha256,
            references=[],
            source=resolved.source,
            output=output,
            max_pixels=resolved.config.max_pixels,
            image=resolved.config.image,
            reconstruct=False,
            quality=0.0,
            compression_level=1,
            lineage=lineage | {"run_id": "r", "fence": lease.fence},
            batch_size=2,
            threads=2,
            dtype=None,
        )
        plan = plan_of(resolved)
        assert Actor(job)(plan.todo) == {"rows": [len(plan.todo)]}
        left = account(output, plan, [])
    assert (left.ok, left.rejected, left.doubles_dropped) == (len(plan.todo), 0, 0)
    assert verify(output).problems == []


def test_rows_that_take_much_memory_become_parts_before_their_block_ends(tmp_path, crops, monkeypatch):
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 6, crops)
    monkeypatch.setattr("pipeline.predict.ROWS_BYTES", 1)
    compressed_here(source, output)
    assert len(part_paths(output, "results")) == 6
    assert verify(output).latents == 6


def test_latents_too_large_for_lists_are_read_like_the_others(tmp_path, crops, monkeypatch):
    source, large, lists = (Store(str(tmp_path / name)) for name in ("in", "large", "lists"))
    make_photos(source, 2, crops)
    compressed_here(source, lists)
    monkeypatch.setattr("pipeline.schema.LIST_VALUES", 1)
    compressed_here(source, large)
    made = rows(tmp_path / "large")
    assert [row["latent"] for row in made] == [None, None]
    assert all(row["bits_per_pixel"] > 0 for row in made)
    for output, name in ((lists, "of-lists"), (large, "of-large")):
        decode_output(output, Store(str(tmp_path / name / "decoded")))
        export(output, Store(str(tmp_path / name / "export")))
    decoded, exported = ([tmp_path / o / name for o in ("of-lists", "of-large")] for name in ("decoded", "export"))
    files = [[path.read_bytes() for path in sorted(folder.rglob("*.png"))] for folder in decoded]
    assert files[0] == files[1]
    assert len(files[0]) == 2
    values = [pq.read_table(folder / "latents").sort_by("rel_path")["latent"] for folder in exported]
    assert values[0].equals(values[1])


def test_coding_without_tables_is_refused_before_an_image_is_touched(tmp_path, crops):
    card = checkpoints.read_card("compress-small")
    model = checkpoints.build(card, checkpoints.read_weights("compress-small", card))
    model.entropy = None
    checkpoints.save(str(tmp_path / "older"), model, card.model_dump(exclude={"sha256"}))
    output = Store(str(tmp_path / "out"))
    make_photos(Store(str(tmp_path / "in")), 1, crops)
    config = RunConfig(task="compress", input=str(tmp_path / "in"), output=output.url, checkpoint=str(tmp_path / "older"))
    check_model(resolve(config))
    with pytest.raises(checkpoints.CheckpointError, match="holds no tables"):
        run(config.model_copy(update={"params": {"coding": "coded"}}))
    assert not [e.path for e in output.entries() if e.path.startswith(("results/", "images/"))]


def test_from_a_bucket_and_to_a_bucket(rclone_bucket, tmp_path, crops):
    source, output = Store(f"{rclone_bucket}/in"), Store(f"{rclone_bucket}/out")
    expected = fill(tmp_path / "in", crops)
    for name in expected:
        if (tmp_path / "in" / name).stat().st_size:
            source.write(name, (tmp_path / "in" / name).read_bytes())
    record = run(RunConfig(task="denoise", input=source.url, output=output.url))
    assert (record["ok"], record["rejected"]) == (11, 2)
    assert verify(output).problems == []
    assert run(RunConfig(task="denoise", input=source.url, output=output.url))["planned"] == 0


def test_a_retry_that_fails_again_and_an_input_that_became_empty_are_said_and_no_failures(tmp_path, crops, caplog):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(crops[0]).save(source / "good.png")
    for name in "abc":
        (source / f"{name}.png").write_bytes(b"this is text")
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    with pytest.raises(TooManyRejects):
        run(config)
    Image.fromarray(crops[1]).save(source / "a.png")
    again = run(config.model_copy(update={"retry": True}))
    # A file that was mended is another one, which a plain run does.
    assert (again["planned"], again["rejected"], again["exit_code"]) == (2, 2, 0)
    assert run(config)["ok"] == 1
    for path in source.iterdir():
        path.unlink()
    assert "is it all there" not in caplog.text
    assert (run(config)["found"], run(config)["exit_code"]) == (0, 0)
    assert "is it all there" in caplog.text


def test_limits_and_rejects(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    assert run(config.model_copy(update={"limit": 2}))["planned"] == 2
    with pytest.raises(TooManyRejects, match="max_reject_fraction"):
        run(config.model_copy(update={"max_pixels": 4000, "max_reject_fraction": 0.1}))
    tiny = [r for r in rows(output, "rejects") if r["error_class"] == "TooManyPixels"]
    assert tiny
    assert "over the limit" in tiny[0]["error"]
    # What was committed before the verdict stays committed.
    assert len(rows(output)) + len(rows(output, "rejects")) == 14


def test_an_output_belongs_to_one_task(tmp_path, crops):
    fill(tmp_path / "in", crops[:11])
    run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out"), limit=1))
    with pytest.raises(ConfigError, match="belongs to the task denoise"):
        run(RunConfig(task="compress", input=str(tmp_path / "in"), output=str(tmp_path / "out")))


def test_an_empty_folder_is_a_run_with_nothing_to_do(tmp_path):
    (tmp_path / "in").mkdir()
    record = run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    assert (record["planned"], record["exit_code"]) == (0, 0)


def test_an_output_that_cannot_be_written(tmp_path, crops):
    fill(tmp_path / "in", crops)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "file" / "out")))


def test_a_file_that_goes_away_after_the_listing_is_tried_again(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    fill(source, crops)
    os.symlink(tmp_path / "nowhere", source / "dangling.jpg")
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    record = run(config)
    assert record["planned"] == record["ok"] + record["rejected"]
