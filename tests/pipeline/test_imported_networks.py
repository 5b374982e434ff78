"""Runs with imported networks: what they write, which are refused before anything starts, and images that are too large."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from imagemill.jobs.evaluate import evaluate
from imagemill.jobs.evaluations.evaluation import EvaluateConfig
from imagemill.models import precision
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.precision import Precision
from imagemill.models.tasks.image_params import ImageParams
from imagemill.pipeline import run as run_module
from imagemill.pipeline import worker_memory
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.loaded_checkpoint import LoadedCheckpoint
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.folders import rows
from tests.support.imported_networks import build_network, spandrel_card, write_network
from tests.support.worker_jobs import job_here, processor_here


def dncnn(**contract: Any) -> tuple[Any, bytes]:
    """Return a DnCNN for gray images with random weights; its tiles are exact unless the contract says otherwise."""
    from spandrel.architectures.DnCNN import DnCNN

    torch.manual_seed(0)
    module = DnCNN(in_nc=1, out_nc=1, nc=4, nb=9, act_mode="R")
    return spandrel_card(module, "DnCNN", "denoise", **{"channels": 1, "tiling": "exact", "halo": 9} | contract)


def compact(scale: int = 3) -> tuple[Any, bytes]:
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    return spandrel_card(Compact(num_feat=4, num_conv=1, upscale=scale), "Compact", "upscale", scale=scale)


@pytest.fixture
def photos(tmp_path: Path, crops: list[np.ndarray]) -> str:
    """Return a folder of five images, of which two have the same size."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, (h, w) in enumerate([(60, 90), (60, 90), (41, 33), (3, 2)]):
        Image.fromarray(crops[number][:h, :w]).save(folder / f"{number}.png")
    Image.fromarray(crops[4]).convert("L").save(folder / "gray.png")
    return str(folder)


@pytest.fixture
def config(tmp_path: Path, photos: str) -> Any:
    """Return a function that builds the config of a run with a network."""

    def build(task: str, network: tuple[Any, bytes] | None, **values: Any) -> RunConfig:
        checkpoint = write_network(tmp_path / "network", network) if network else None
        return RunConfig(task=task, input=photos, output=str(tmp_path / "out"), checkpoint=checkpoint, **values)

    return build


def process(config: RunConfig) -> tuple[dict[str, dict[str, Any]], Any]:
    """Process the images of a run in this process; return the rows by their paths, and the block processor."""
    job = resolve(config)
    worker = job_here(job)
    worker.params.update(job.params.model_dump())
    processor = processor_here(worker)
    table = pa.concat_tables(processor(build_plan(job).todo))
    return {row["rel_path"]: row for row in table.to_pylist()}, processor


def read(config: RunConfig, row: dict[str, Any]) -> np.ndarray:
    with Image.open(Path(str(config.output)) / row["output_uri"]) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("task", ["denoise", "restore"])
def test_run_of_an_imported_network_equals_the_network(task, config, photos):
    network = dncnn()
    job = config(task, network)
    record = run(job)
    assert (record["ok"], record["rejected"]) == (5, 0)
    assert verify(Store(str(job.output))).problems == []
    model = build_network(network)
    for row in rows(Path(str(job.output))):
        with Image.open(Path(photos) / row["rel_path"]) as image:
            rgb, mode = np.array(image.convert("RGB")), image.mode
        [expected] = process_images(model, [rgb], ImageParams(), Precision())
        with Image.open(Path(str(job.output)) / row["output_uri"]) as image:
            assert image.mode == mode
        assert np.abs(read(job, row).astype(int) - expected).max() <= 1
        # No noise level was used.
        assert row.get("sigma") is None
    assert run(job)["planned"] == 0


def test_upscale_takes_any_scale_of_a_network(config):
    job = config("upscale", compact(3))
    results, _ = process(job)
    assert {row["scale"] for row in results.values()} == {3}
    assert [read(job, results[name]).shape for name in ("2.png", "3.png")] == [(123, 99, 3), (9, 6, 3)]


def test_image_too_large_is_a_reject_that_says_what_helps(config, monkeypatch):
    """Smaller images of the same run get their rows; with approximate tiles the large images do too."""
    monkeypatch.setattr(worker_memory, "machine_memory", lambda: 60 * 80 * 1000 / worker_memory.MODEL_SHARE)
    network = dncnn(tiling="never", halo=0, bytes_per_pixel=1000)
    results, _ = process(config("restore", network))
    assert {name for name, row in results.items() if row["stage"]} == {"0.png", "1.png", "gray.png"}
    row = results["gray.png"]
    assert (row["stage"], row["error_class"], row["transient"]) == ("model", "TooLargeForMemory", False)
    assert "128×96 pixels need 0.0123 GB, but a worker may use 0.0048 GB" in row["error"]
    assert "(--resize max:80)" in row["error"]
    assert "(--tile approximate)" in row["error"]
    monkeypatch.setattr("imagemill.models.objectives.image_networks.ALIGNMENT", 8)
    monkeypatch.setattr("imagemill.models.objectives.image_networks.BLENDED_TILE", 48)
    monkeypatch.setattr("imagemill.models.objectives.image_networks.BLENDED_OVERLAP", 16)
    results, _ = process(config("restore", network, params={"tile": "approximate"}))
    assert [row["stage"] for row in results.values()] == [None] * 5


def test_tile_is_part_of_a_version_unless_it_is_the_default(config):
    assert "tile" not in resolve(config("denoise", None)).parameters
    assert "tile" not in resolve(config("upscale", None)).parameters
    network = dncnn(tiling="never", halo=0)
    assert resolve(config("denoise", network, params={"tile": "approximate"})).parameters["tile"] == "approximate"


@pytest.mark.parametrize(("dtypes", "used"), [(("float32",), torch.float32), (("float32", "bfloat16"), torch.bfloat16)])
def test_worker_uses_a_format_only_if_the_card_has_it(dtypes, used, config, monkeypatch):
    monkeypatch.setattr(precision, "fastest_dtype", lambda device: torch.bfloat16)
    _, processor = process(config("denoise", dncnn(dtypes=dtypes)))
    assert processor.precision.dtype == used


@pytest.mark.parametrize(
    ("task", "network", "values", "message"),
    [
        ("restore", None, {}, "^checkpoint: missing. restore has no bundled checkpoint. Give the folder"),
        ("denoise", compact(), {}, "enlarges images to 3 times.*denoise cannot use it. Use `imagemill upscale`"),
        ("upscale", dncnn(), {}, "the same size, so upscale cannot use it. Use `imagemill denoise` or `imagemill restore`"),
        ("compress", dncnn(), {}, "compress cannot use it"),
        ("denoise", dncnn(), {"params": {"sigma": 25}}, r"^params.sigma=25: checkpoint .* takes no noise level. Omit sigma"),
        ("denoise", dncnn(), {"pool": {"dtype": "bfloat16"}}, r"^pool.dtype='bfloat16': .* Valid: float32"),
        ("denoise", dncnn(), {"params": {"tile": "approximate"}}, "already give the result of the whole image. Omit tile"),
    ],
)
def test_unusable_network_is_refused_before_the_run(task, network, values, message, config):
    job = config(task, network, **values)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        run(job)
    assert not Path(str(job.output)).exists()


def test_missing_checkpoint_is_refused_before_any_process_starts(config, monkeypatch):
    def fail(config: RunConfig) -> None:
        raise AssertionError("selected an engine")

    monkeypatch.setattr(run_module, "select_engine", fail)
    with pytest.raises(ConfigError, match="checkpoint: missing"):
        run(config("restore", None))


def test_loaded_checkpoint_takes_an_imported_network(tmp_path, crops):
    network = dncnn()
    loaded = LoadedCheckpoint.load(write_network(tmp_path / "network", network))
    rgb = crops[0][:41, :33].copy()
    [expected] = process_images(build_network(network), [rgb.copy()], ImageParams(), Precision())
    assert np.abs(loaded(rgb).astype(int) - expected).max() <= 1
    assert loaded(Image.fromarray(rgb).convert("L")).mode == "L"
    with pytest.raises(CheckpointError, match="takes no noise level"):
        loaded(rgb, sigma=25)
    enlarging = LoadedCheckpoint.load(write_network(tmp_path / "other", compact(2)))
    assert (enlarging.scale, enlarging(rgb).shape) == (2, (82, 66, 3))


def test_evaluate_measures_imported_networks(tmp_path, crops):
    """A network that takes no level is measured blind; the table of upscale is that of the bundled network."""
    (tmp_path / "clean").mkdir()
    Image.fromarray(crops[0]).convert("L").save(tmp_path / "clean/gray.png")

    def table(task: str, network: tuple[Any, bytes], **values: Any) -> dict[str, Any]:
        checkpoint = write_network(tmp_path / task, network)
        [lines] = evaluate(
            EvaluateConfig(task=task, input=str(tmp_path / "clean"), checkpoint=checkpoint, **values)
        ).tables.values()
        [line] = lines
        return line

    line = table("denoise", dncnn(), at=[25])
    assert [column for column in line if "files" in column or "float" in column] == [
        "files blind dB",
        "files blind SSIM",
        "float blind dB",
    ]
    assert all(math.isfinite(value) for value in line.values())
    assert table("upscale", compact(2))["ours RGB dB"] > 0


def test_model_memory_is_the_share_of_a_worker(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("8000000000")
    monkeypatch.setattr(worker_memory, "MEMORY_LIMITS", (limit, tmp_path / "missing"))
    monkeypatch.setattr(worker_memory, "available_cpus", lambda: 4.0)
    for workers, cpus, gigabytes in ((1, 1, 6), (2, 1, 3), (100, 1, 1.5), (100, 2, 3)):
        assert worker_memory.model_memory("cpu", workers, cpus) == gigabytes * 1e9
    limit.write_text("max")
    assert worker_memory.machine_memory() > 1e9
