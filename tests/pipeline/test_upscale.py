"""End-to-end runs of upscale over a folder, with odd, small and large sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from imagemill.models import checkpoint
from imagemill.models.architectures.edsr import EDSR
from imagemill.models.batches import float_to_bytes, to_float_batch, to_uint8_images
from imagemill.models.metrics import psnr_db
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.objectives.upscale import downscale
from imagemill.models.precision import Precision
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.worker_jobs import job_here, processor_here


def untrained(scale: int = 2) -> EDSR:
    """Build a model whose weights are all nonzero, so that every input affects the output."""
    torch.manual_seed(0)
    model = EDSR(width=8, blocks=2, scale=scale)
    with torch.no_grad():
        model.tail.weight.normal_(0, 0.05)
    return model.eval().requires_grad_(False)


def upscaled(model: EDSR, *images: np.ndarray) -> list[np.ndarray]:
    outputs = TASK_OBJECTIVES["upscale"].predict(model, [Sample(rgb) for rgb in images], ImageParams(), Precision())
    assert {output.columns["scale"] for output in outputs} == {model.scale}
    return [output.image for output in outputs]


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (57, 41), (96, 128)])
def test_upscale_enlarges_by_the_scale_of_the_model(size, scale, crops):
    (image,) = upscaled(untrained(scale), crops[0][: size[0], : size[1]].copy())
    assert image.shape == (scale * size[0], scale * size[1], 3)


def test_upscale_untrained_is_bicubic(crops):
    (image,) = upscaled(EDSR(width=8, blocks=1), crops[0])
    bicubic = Image.fromarray(crops[0]).resize((256, 192), Image.Resampling.BICUBIC)
    # Pillow rounds to 8 bits between rows and columns.
    assert psnr_db(image, np.asarray(bicubic)) > 50


@pytest.mark.parametrize("stride", [1, 4])
def test_upscale_in_tiles_equals_the_whole(stride, crops, monkeypatch):
    model, rgb = untrained(), crops[0][:57, :91].copy()
    # A network with strides pads its input, and crops its output by the same amount.
    model.stride, model.halo = stride, 8
    (single_output,) = upscaled(model, rgb)
    padded_output = to_uint8_images(float_to_bytes(model(to_float_batch([rgb], stride, "cpu"))))[0]
    assert np.array_equal(single_output, padded_output[:114, :182])
    monkeypatch.setattr("imagemill.models.objectives.upscale.tile_side", lambda *size: 32)
    (tiles,) = upscaled(model, rgb)
    # A different order of summation may round to the adjacent level.
    assert np.abs(tiles.astype(int) - single_output).max() <= 1
    batch_outputs = upscaled(model, rgb, crops[1][:57, :91])
    assert np.abs(batch_outputs[0].astype(int) - single_output).max() <= 1


def test_upscale_checkpoint_beats_bicubic_by_1_db(crops):
    card = checkpoint.read_card("upscale-small")
    model = checkpoint.build(card, checkpoint.read_weights("upscale-small", card))
    clean = torch.from_numpy(np.stack(crops[::6])).permute(0, 3, 1, 2).float() / 255
    figures = TASK_OBJECTIVES["upscale"].validate(model, clean, torch.Generator())
    assert figures["gain_over_bicubic_db"] > 1
    assert downscale(clean, 2).shape[2:] == (48, 64)


@pytest.mark.parametrize(
    ("limit", "widths", "batches"),
    [
        ("MODEL_PIXELS", [128, 128, 128, 128], [[128, 128], [128, 128]]),
        ("DECODED_PIXELS", [128, 128, 128, 128], [[128], [128], [128], [128]]),
        ("WAITING_PIXELS", [100, 128, 120], [[128], [100], [120]]),
    ],
)
def test_pixel_budget_counts_output_pixels(limit, widths, batches, tmp_path, crops, monkeypatch):
    """The budget fits two outputs of 192×256 pixels, although it would fit all inputs."""
    (tmp_path / "in").mkdir()
    for number, width in enumerate(widths):
        Image.fromarray(crops[number][:, :width]).save(tmp_path / "in" / f"{number}.png")
    pixel_limit = 2 * 192 * 256
    monkeypatch.setattr(
        f"imagemill.pipeline.pixel_budget.{limit}",
        pixel_limit if limit == "WAITING_PIXELS" else {"cpu": pixel_limit, "cuda": pixel_limit},
    )
    upscale, batch_widths = TASK_OBJECTIVES["upscale"], []

    def predict(model: EDSR, samples: list[Sample], *args: Any) -> list[Output]:
        batch_widths.append([sample.rgb.shape[1] for sample in samples])
        return type(upscale).predict(upscale, model, samples, *args)

    monkeypatch.setattr(upscale, "predict", predict)
    pool = {"batch_size": 8}
    job = resolve(RunConfig(task="upscale", input=f"{tmp_path}/in", output=f"{tmp_path}/out", pool=pool))
    table = pa.concat_tables(processor_here(job_here(job))(build_plan(job).todo))
    assert table["stage"].null_count == len(widths)
    assert batch_widths == batches


def fill(folder: Path, crops: list[np.ndarray]) -> None:
    folder.mkdir()
    Image.fromarray(crops[0][:51, :77]).save(folder / "odd.png")
    Image.fromarray(crops[1]).convert("L").save(folder / "gray.jpg")
    image = Image.fromarray(crops[2][:95, :127])
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(crops[3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(crops[4]).quantize(16).save(folder / "palette.gif")
    # The maximum width of a WebP, in a very small file.
    Image.new("RGB", (16383, 2), "#336699").save(folder / "wide.webp", lossless=True)


def test_upscale_of_a_mixed_folder_verifies(tmp_path, crops):
    fill(tmp_path / "in", crops)
    output = tmp_path / "out"
    config = RunConfig(task="upscale", input=str(tmp_path / "in"), output=str(output))
    record = run(config)
    assert verify(Store(str(output))).problems == []
    rows = {row["rel_path"]: row for part in (output / "results").iterdir() for row in pq.read_table(part).to_pylist()}
    assert {row["scale"] for row in rows.values()} == {2}
    sizes = {}
    for name, row in rows.items():
        with Image.open(output / row["output_uri"]) as image:
            sizes[name] = (image.size, image.mode)
    assert sizes == {
        "odd.png": ((154, 102), "RGB"),
        "gray.jpg": ((256, 192), "L"),
        "alpha.png": ((254, 190), "RGBA"),
        "turned.jpg": ((192, 256), "RGB"),
        "palette.gif": ((256, 192), "RGB"),
    }
    # The row describes the source. The output is what the format can store; otherwise the image is rejected.
    assert (rows["odd.png"]["orig_width"], rows["odd.png"]["orig_height"]) == (77, 51)
    assert (record["ok"], record["rejected"]) == (5, 1)
    (reject,) = (row for part in (output / "rejects").iterdir() for row in pq.read_table(part).to_pylist())
    assert (reject["rel_path"], reject["stage"]) == ("wide.webp", "encode")
    assert "16383" in reject["error"]
    with Image.open(output / rows["alpha.png"]["output_uri"]) as image:
        alpha = np.asarray(image.getchannel("A"), int)
    assert np.abs(alpha - np.linspace(0, 255, 190)[:, None]).max() <= 3
    assert run(config)["planned"] == 0
    # Compare pixels: the centre of the input, each pixel repeated four times, next to the centre of the output.
    assert "Center of the image, not resized" in (output / record["report"]).read_text()


def test_upscale_names_the_limit_of_a_format(tmp_path):
    """A reject names a format that can store so long a side; with that format the run succeeds."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, width in (("long.jpg", 32_760), ("long.webp", 8_200), ("long.avif", 16_400), ("long.png", 8_200)):
        Image.new("RGB", (width, 2), (90, 120, 60)).save(source / name)
    config = RunConfig(task="upscale", input=str(source), output=str(output), max_reject_fraction=1)
    record = run(config)
    assert record["reasons"] == {"TooLargeForFormat": 3}
    rejects = [row for part in (output / "rejects").iterdir() for row in pq.read_table(part).to_pylist()]
    errors = {row["rel_path"]: row["error"] for row in rejects}
    for name, longest in (("long.jpg", "JPEG allows at most 65500"), ("long.webp", "WEBP allows at most 16383")):
        assert longest in errors[name]
    assert all("Write PNG instead: --set image.format=png" in text for text in errors.values())
    assert run(config.model_copy(update={"image": ImageConfig(format="png")}))["ok"] == 4
