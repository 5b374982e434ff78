"""Commands over an output with float latents: search, duplicates, map, stats, report and export, and the notebook API."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import imagemill
from imagemill.jobs.decode import decode_output
from imagemill.jobs.duplicates import show_duplicates
from imagemill.jobs.export import export
from imagemill.jobs.map import write_map
from imagemill.jobs.search import show_search
from imagemill.jobs.stats import show_stats
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.storage import Store
from tests.support.float_coders import library_latent, write_float_coder
from tests.support.folders import rows


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Store:
    """Compress resized photos and a near copy of one of them with a random AutoencoderKL."""
    folder = tmp_path_factory.mktemp("float")
    write_float_coder(folder / "checkpoint")
    (folder / "in").mkdir()
    for number, crop in enumerate(crops[:9]):
        Image.fromarray(crop).resize((120, 90)).save(folder / "in" / f"{number}.png")
    Image.fromarray(crops[3]).resize((108, 81)).save(folder / "in" / "copy.jpg", quality=85)
    run = imagemill.run(
        "compress",
        input=folder / "in",
        output=folder / "out",
        checkpoint=str(folder / "checkpoint"),
        image=ImageConfig(resize="bucket:8192:16"),
        engine="local",
    )
    assert (run.ok, run.rejected) == (10, 0)
    assert run.quality["psnr_db"] > 0
    return Store(str(folder / "out"))


def test_near_copy_is_found(output: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_search(output, None, "3.png", 2, str(tmp_path / "sheet.png"))
    assert "copy.jpg" in capsys.readouterr().out.splitlines()[1]
    assert Image.open(tmp_path / "sheet.png").size[0] > 256
    # The query image is resized and cropped like the images of the output.
    show_search(output, f"{output.url}/../in/copy.jpg", None, 2)
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert "copy.jpg" in first
    assert "1.000" in first
    assert "3.png" in second
    show_duplicates(output, 0.9)
    assert "1 group among 10 images" in capsys.readouterr().out


def test_map_and_stats_read_float_latents(output: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(output, str(tmp_path / "map.html"), "pca")
    assert (tmp_path / "map.html").read_text().count("data:image/jpeg") >= 10
    capsys.readouterr()
    show_stats(output, None, None, as_json=True)
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert (run["images"], run["channels"]) == (10, 4)
    show_stats(output, run["run_id"], run["run_id"], as_json=True)
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["distance"] == 0
    assert comparison["chance"] > 0


def test_report_shows_cropped_inputs_and_decoded_latents(output: Store) -> None:
    [report] = Path(output.url).glob("runs/*/report.html")
    page = report.read_text()
    record = json.loads((report.parent / "run.json").read_text())
    assert record["quality"]["bits_per_pixel"] > 0
    assert page.count('src="data:image/webp') >= 2 * 8
    assert "principal" in page


def test_export_decodes_to_the_same_images(output: Store, tmp_path: Path) -> None:
    manifest = export(output, Store(str(tmp_path / "export")))
    assert manifest["scaling_factor"] == 0.18215
    assert "decode" in manifest
    decode_output(Store(str(tmp_path / "export")), Store(str(tmp_path / "from-export")))
    decode_output(output, Store(str(tmp_path / "decoded")))
    names = {path.name for path in (tmp_path / "decoded").glob("*.png")}
    assert len(names) == 10
    for name in names:
        assert (tmp_path / "decoded" / name).read_bytes() == (tmp_path / "from-export" / name).read_bytes()
        with Image.open(tmp_path / "decoded" / name) as image:
            assert image.size == (96, 80)
    # Without the size after cropping, nobody could tell how large the decoded image is.
    some = [name for name in manifest["columns"] if not name.startswith("crop_")]
    assert "decode" not in export(output, Store(str(tmp_path / "some")), columns=some)


def test_scaled_export_and_dataset(output: Store, tmp_path: Path) -> None:
    """Stored and read latents are unscaled; an export with --scaled holds what trainers use."""
    stored = {row["rel_path"]: np.asarray(row["latent_values"], np.float32) for row in rows(Path(output.url))}
    export(output, Store(str(tmp_path / "scaled")), scaled=True, columns=["rel_path", "latent"])
    table = pq.read_table(tmp_path / "scaled" / "latents")
    for name, latent in zip(table["rel_path"].to_pylist(), table["latent"].to_pylist(), strict=True):
        np.testing.assert_allclose(latent, (stored[name] - 0.1) * 0.18215, rtol=1e-5, atol=1e-6)
    codes = imagemill.read_latents(output.url, columns=["rel_path"])
    names = codes.arrow()["rel_path"].to_pylist()
    assert np.array_equal(codes.numpy().reshape(10, -1), np.stack([stored[name] for name in names]))


def test_notebook_encodes_and_decodes_floats(output: Store, crops: list[np.ndarray]) -> None:
    module = write_float_coder(Path(output.url).parent / "again")
    checkpoint = imagemill.load_checkpoint(Path(output.url).parent / "again", device="cpu")
    rgb = crops[0][:62, :83]
    latent = checkpoint.encode(rgb)
    padded = torch.from_numpy(np.pad(rgb, ((0, 2), (0, 1), (0, 0)), mode="edge")).permute(2, 0, 1)[None] / 255
    np.testing.assert_allclose(latent.values, library_latent(module, padded)[0].numpy(), atol=1e-5)
    assert latent.step is None
    decoded = checkpoint.decode(latent)
    assert decoded.shape == rgb.shape
    assert np.array_equal(decoded, checkpoint(rgb))
    samples: list[Any] = [checkpoint.encode(rgb, latents="sample", seed=seed).values for seed in (1, 1, 2)]
    assert np.array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])
    with pytest.raises(ValueError, match=r"needs float32 of shape \(4, 16, 21\)"):
        checkpoint.decode(imagemill.pipeline.loaded_checkpoint.Latent(latent.values[:, 1:], 62, 83))
