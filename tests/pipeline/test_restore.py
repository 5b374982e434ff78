"""End-to-end runs of inpaint and colorize over a folder."""

import io
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.tiny_models import TINY


@pytest.fixture
def untrained(tmp_path: Path):
    def make(task: str) -> str:
        architecture, parameters = TINY[task]
        torch.manual_seed(0)
        card = {"name": f"tiny-{task}", "task": task, "architecture": architecture, "parameters": parameters}
        checkpoint.save(str(tmp_path / task), ARCHITECTURES[architecture](**parameters), card)
        return str(tmp_path / task)

    return make


def rows(output: Path, folder: str = "results") -> list[dict]:
    if not list((output / folder).glob("*.parquet")):
        return []
    return duckdb.sql(f"SELECT * FROM '{output}/{folder}/*.parquet' ORDER BY rel_path").to_arrow_table().to_pylist()


def hole_in(shape: tuple[int, ...], x: int = 30) -> np.ndarray:
    hole = np.zeros(shape[:2], np.uint8)
    hole[10:30, x : x + 20] = 255
    return hole


def test_inpaint_reads_masks_next_to_images(tmp_path, crops, untrained):
    photos, output = tmp_path / "photos", tmp_path / "out"
    (photos / "deep").mkdir(parents=True)
    Image.fromarray(crops[0]).save(photos / "a.jpg", quality=95)
    Image.fromarray(hole_in(crops[0].shape)).save(photos / "a.mask.png")
    Image.fromarray(crops[1]).save(photos / "deep" / "b.v2.png")
    Image.fromarray(hole_in(crops[1].shape)).save(photos / "deep" / "b.v2.mask.png")
    Image.fromarray(crops[2]).save(photos / "bare.png")
    Image.fromarray(crops[3]).save(photos / "odd.png")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(photos / "odd.mask.png")
    Image.fromarray(crops[4]).save(photos / "torn.png")
    (photos / "torn.mask.png").write_bytes(b"no picture")
    config = RunConfig(task="inpaint", input=str(photos), output=str(output), checkpoint=untrained("inpaint"))
    config = config.model_copy(update={"max_reject_fraction": 0.9})

    record = run(config)
    assert (record["found"], record["ignored"], record["ok"], record["rejected"]) == (5, 4, 2, 3)
    assert record["reasons"] == {"NoMask": 1, "MaskSize": 1, "MaskUnknownFormat": 1}
    assert not verify(Store(str(output))).problems
    for name, output_name in (("a.jpg", "a.jpg.png"), ("deep/b.v2.png", "deep/b.v2.png")):
        source = np.asarray(Image.open(photos / name).convert("RGB"))
        is_known = hole_in(source.shape) == 0
        restored_pixels = np.asarray(Image.open(output / "images" / output_name))
        assert np.array_equal(restored_pixels[is_known], source[is_known])
        assert (restored_pixels[~is_known] != source[~is_known]).any()

    assert run(config)["planned"] == 0
    Image.fromarray(hole_in(crops[0].shape, 60)).save(photos / "a.mask.png")
    Image.fromarray(hole_in(crops[2].shape)).save(photos / "bare.mask.png")
    second_record = run(config)
    assert (second_record["planned"], second_record["ok"]) == (2, 2)
    source = np.asarray(Image.open(photos / "a.jpg").convert("RGB"))
    is_known = hole_in(source.shape, 60) == 0
    assert np.array_equal(np.asarray(Image.open(output / "images" / "a.jpg.png"))[is_known], source[is_known])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_inpaint_reads_masks_in_shards(tmp_path, crops, untrained, mode):
    """One mask comes before its image, one after it, and one image has no mask."""
    packed = tmp_path / "in" / ("s.tar" if mode == "w" else "s.tgz")
    packed.parent.mkdir()

    def write(members: dict[str, bytes]) -> None:
        with tarfile.open(packed, mode) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    photo, hole = encode_rgb(crops[0], "PNG"), hole_in(crops[0].shape)
    mask = encode_rgb(np.stack([hole] * 3, 2), "PNG")
    members = {"deep/a.mask.png": mask, "deep/a.png": photo, "b.png": photo, "b.mask.png": mask, "c.png": photo}
    write(members)
    config = RunConfig(task="inpaint", input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    config = config.model_copy(update={"checkpoint": untrained("inpaint"), "max_reject_fraction": 0.9})
    record = run(config)
    assert (record["found"], record["ignored"], record["ok"], record["reasons"]) == (3, 2, 2, {"NoMask": 1})
    for name in ("deep/a.png", "b.png"):
        restored_pixels = np.asarray(Image.open(tmp_path / "out/images" / packed.name / name))
        assert np.array_equal(restored_pixels[hole == 0], crops[0][hole == 0])
        assert (restored_pixels[hole > 0] != crops[0][hole > 0]).any()
    write(members | {"c.mask.png": mask})
    second_record = run(config)
    assert (second_record["planned"], second_record["ok"]) == (1, 1)


def test_inpaint_keeps_known_planes_of_a_gray_file(tmp_path, crops, untrained):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.fromarray(crops[0]).convert("L").save(photos / "gray.png")
    config = RunConfig(task="inpaint", input=str(photos), output=str(output), checkpoint=untrained("inpaint"))
    run(config.model_copy(update={"params": {"missing": "red"}}))
    source = np.asarray(Image.open(photos / "gray.png").convert("RGB"))
    restored_pixels = np.asarray(Image.open(output / "images" / "gray.png"))
    assert restored_pixels.shape == source.shape
    assert np.array_equal(restored_pixels[..., 1:], source[..., 1:])


def test_inpaint_fills_transparent_holes(tmp_path, crops, untrained):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    alpha = 255 - hole_in(crops[0].shape)
    Image.fromarray(np.dstack([crops[0], alpha])).save(photos / "a.webp", lossless=True, exact=True)
    config = RunConfig(task="inpaint", input=str(photos), output=str(output), checkpoint=untrained("inpaint"))
    run(config.model_copy(update={"params": {"missing": "alpha"}}))
    restored_pixels = Image.open(output / "images" / "a.webp.png")
    assert restored_pixels.mode == "RGB"
    assert np.array_equal(np.asarray(restored_pixels)[alpha > 0], crops[0][alpha > 0])


def test_colorize_keeps_luma(tmp_path, crops):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.fromarray(crops[0]).convert("L").save(photos / "gray.jpg", quality=90)
    Image.fromarray(crops[1]).save(photos / "colour.png")
    Image.fromarray(np.dstack([crops[2][..., 0], 255 - hole_in(crops[2].shape)])).save(photos / "la.png")
    config = RunConfig(task="colorize", input=str(photos), output=str(output))
    record = run(config)
    assert record["ok"] == 3
    for row in rows(output):
        source = Image.open(photos / row["rel_path"])
        colour_image = Image.open(output / row["output_uri"])
        assert colour_image.format == "PNG"
        assert colour_image.mode == ("RGBA" if row["has_alpha"] else "RGB")
        is_visible = np.asarray(colour_image.convert("RGBA"))[..., 3] > 0
        luma, source_luma = (np.asarray(image.convert("RGB").convert("L")) for image in (colour_image, source))
        assert np.array_equal(luma[is_visible], source_luma[is_visible])
        assert np.ptp(np.asarray(colour_image.convert("RGB")).astype(int), axis=2).max() > 0
        assert row["colourfulness"] > 0
    assert not verify(Store(str(output))).problems
