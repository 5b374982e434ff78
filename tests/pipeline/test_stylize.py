"""End-to-end runs of style transfer over a folder, with an untrained network."""

import io
import json
import struct
import zlib
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import check_model, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store

SMALL = {"widths": [8, 8, 8], "convs": [1, 1, 1]}


@pytest.fixture
def untrained(tmp_path: Path) -> str:
    torch.manual_seed(0)
    card = {"name": "tiny-stylize", "task": "stylize", "architecture": "perceptual", "parameters": SMALL}
    checkpoint.save(str(tmp_path / "net"), ARCHITECTURES["perceptual"](**SMALL), card)
    return str(tmp_path / "net")


@pytest.fixture
def photos(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Write four images: gray, with alpha, rotated by EXIF, and broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(crops[0]).convert("L").save(folder / "gray.png")
    alpha = np.linspace(0, 255, crops[1].shape[0] * crops[1].shape[1]).astype(np.uint8).reshape(crops[1].shape[:2])
    Image.fromarray(np.dstack([crops[1], alpha])).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(crops[2]).save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture
def config(tmp_path: Path, photos: Path, untrained: str, crops: list[np.ndarray]):
    """Return config(params), whose style image has an odd size, alpha and an EXIF rotation."""
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.dstack([crops[9][:51, :77], crops[8][:51, :77, 0]])).save(tmp_path / "style.png", exif=exif)

    def make(limit: int | None = None, **params) -> RunConfig:
        return RunConfig(
            task="stylize",
            input=str(photos),
            output=str(tmp_path / "out"),
            checkpoint=untrained,
            limit=limit,
            params={"style": [str(tmp_path / "style.png")], **params},
        )

    return make


def rows(output: Path) -> dict[str, dict]:
    table = duckdb.sql(f"SELECT * FROM '{output}/results/*.parquet'").to_arrow_table()
    return {row["rel_path"]: row for row in table.to_pylist()}


def test_stylize_continues_after_an_interruption(config, tmp_path, crops):
    first = run(config(limit=2))
    assert first["planned"] == 2
    rest_record = run(config())
    assert (rest_record["done_before"] + rest_record["rejects_waiting"], rest_record["planned"]) == (2, 2)
    result_rows = rows(tmp_path / "out")
    assert sorted(result_rows) == ["alpha.png", "gray.png", "turned.jpg"]
    output_images = {name: Image.open(tmp_path / "out" / row["output_uri"]) for name, row in result_rows.items()}
    assert output_images["gray.png"].mode == "RGB"
    with Image.open(tmp_path / "photos" / "alpha.png") as source:
        assert np.array_equal(np.asarray(output_images["alpha.png"])[..., 3], np.asarray(source)[..., 3])
    assert output_images["turned.jpg"].size == crops[2].shape[:2]
    parameters = json.loads(result_rows["gray.png"]["parameters"])
    assert parameters["method"] == "adain"
    (digest,) = parameters["style"]
    assert (tmp_path / "out" / "exemplars" / digest[:16]).read_bytes() == (tmp_path / "style.png").read_bytes()
    assert not verify(Store(str(tmp_path / "out"))).problems

    (tmp_path / "elsewhere.png").write_bytes((tmp_path / "style.png").read_bytes())
    assert run(config(style=[str(tmp_path / "elsewhere.png")]))["planned"] == 0, "the same style by another name"


def test_stylize_stores_losses_in_rows(config, tmp_path):
    record = run(config(method="gatys", optimizer="adam", steps=3, size=64, preserve_color=True, beta=50))
    assert (record["ok"], record["rejected"]) == (3, 1)
    result_rows = rows(tmp_path / "out")
    for name, row in result_rows.items():
        assert len(row["losses"]) == 4
        assert row["losses"][-1] == pytest.approx(row["content_loss"] + 50 * row["style_loss"], rel=1e-4)
        image = Image.open(tmp_path / "out" / row["output_uri"])
        assert max(image.size) == 64
        assert image.mode == {"gray.png": "L", "alpha.png": "RGBA", "turned.jpg": "RGB"}[name]
    assert json.loads(result_rows["gray.png"]["parameters"])["steps"] == 3


def png_header(width: int, height: int) -> bytes:
    """Build a PNG that declares a size but has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def one_pixel() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"style .*bad\.png: no such file"),
        (b"", r"style .*bad\.png: EmptyFile"),
        (b"no image at all", r"style .*bad\.png: UnknownFormat"),
        (one_pixel(), r"style .*bad\.png: 1×1 pixels; 32 a side are the least"),
        (png_header(10_000, 10_000), r"style .*bad\.png: TooManyPixels: 10000×10000 = 100\.0 MP is over max_pixels=40"),
    ],
)
def test_stylize_refuses_a_bad_style_first(config, tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        resolve(config(style=[str(tmp_path / "bad.png")]))
    assert not (tmp_path / "out").exists()


def test_stylize_refuses_bad_parameters_in_one_line(config):
    for params, message in (
        ({"style": []}, r"params\.style = \[\]"),
        ({"alpha": float("nan"), "method": "gatys"}, "finite number"),
        ({"method": "gatys", "alpha": 0, "beta": 0}, "alpha and beta are both 0"),
    ):
        with pytest.raises(ConfigError, match=message) as failure:
            resolve(config(**params))
        assert "\n" not in str(failure.value)
        assert len(str(failure.value)) < 600
    with pytest.raises(CheckpointError, match=r"layer 'relu9_1': does not exist in the network\. Valid: relu1_1"):
        check_model(resolve(config(method="gatys", style_layers={"relu9_1": 1.0})))


def test_stylize_reads_styles_from_a_bucket(config, tmp_path, rclone_bucket):
    data = (tmp_path / "style.png").read_bytes()
    Store(rclone_bucket).write("styles/deep/a.png", data)
    ((_, style_bytes),) = resolve(config(style=[f"{rclone_bucket}/styles/deep/a.png"])).style_images
    assert style_bytes == data
    with pytest.raises(ConfigError, match="no such file"):
        resolve(config(style=[f"{rclone_bucket}/styles/b.png"]))
