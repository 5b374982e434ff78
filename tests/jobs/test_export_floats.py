"""Exports of float latents: the values of the rows, scaled as trainers take them, under the names of sd-scripts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.jobs.export import export
from imagemill.models.contract import LatentContract
from imagemill.pipeline import read_latents
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.storage import Store
from tests.support.float_coders import compress_here, write_float_coder
from tests.support.folders import rows

SIZES = {"a.png": (64, 48), "b.png": (48, 64)}
"""Width and height."""
SD3 = LatentContract(channels=16, factor=4, scaling_factor=1.5305, shift_factor=0.0609)
FLUX = LatentContract(channels=16, factor=4, scaling_factor=0.3611, shift_factor=0.1159)


def make_output(folder: Path, crops: list[np.ndarray], settings: dict[str, Any] | None = None, **contract: Any) -> Store:
    """Return an OUTPUT of two photos and a random AutoencoderKL.

    Args:
        folder: a free folder.
        crops: the photos.
        settings: keys of the config.
        contract: fields of the contract to change.
    """
    write_float_coder(folder / "checkpoint", **contract)
    (folder / "in").mkdir()
    for crop, (name, size) in zip(crops, SIZES.items(), strict=False):
        Image.fromarray(crop).resize(size).save(folder / "in" / name)
    return compress_here(folder, **settings or {})


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Store:
    return make_output(tmp_path_factory.mktemp("floats"), crops)


def stored_values(output: Store) -> dict[str, np.ndarray]:
    """Return what the rows hold, (C,h,w) by name."""
    made = rows(Path(output.root))
    return {row["rel_path"]: np.float32(row["latent_values"]).reshape(row["latent_shape"]) for row in made}


def exported_values(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / "latents").to_pylist()
    return {row["rel_path"]: np.float32(row["latent"]).reshape(row["latent_shape"]) for row in table}


def test_export_of_floats_holds_the_values_of_the_rows(output: Store, tmp_path: Path) -> None:
    record = export(output, Store(str(tmp_path / "export")), layout="one")
    assert (record["scaling_factor"], record["shift_factor"], record["scaled"]) == (0.18215, 0.1, False)
    expected = stored_values(output)
    values = exported_values(tmp_path / "export")
    assert values.keys() == expected.keys() == SIZES.keys()
    for name in expected:
        np.testing.assert_array_equal(values[name], expected[name])
    decode_output(output, Store(str(tmp_path / "of-output")))
    decode_output(Store(str(tmp_path / "export")), Store(str(tmp_path / "of-export")))
    for name in expected:
        first, second = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("of-output", "of-export"))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_scaled_export_subtracts_then_multiplies(
    output: Store, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = export(output, Store(str(tmp_path / "export")), file_format=form, layout="shapes", scaled=True)
    assert record["scaled"]
    assert "decode" not in record
    for name, latent in stored_values(output).items():
        if form == "npz":
            value = np.load(tmp_path / f"export/{Path(name).stem}.npz")["latents"]
        else:
            value = exported_values(tmp_path / "export")[name]
        np.testing.assert_allclose(value, (latent - 0.1) * 0.18215, rtol=1e-6, atol=1e-7)
    assert ("expects unscaled latents of SD. Leave --scaled out" in caplog.text) == (form == "npz")
    if form == "parquet":
        assert sorted(values.shape for _, values in read_latents(str(tmp_path / "export")).batches()) == [
            (1, 4, 12, 16),
            (1, 4, 16, 12),
        ]
        with pytest.raises(ConfigError, match="latents are scaled, so they cannot be decoded"):
            decode_output(Store(str(tmp_path / "export")), Store(str(tmp_path / "images")))
    else:
        with pytest.raises(ConfigError, match="holds an export with scaled True, not False"):
            export(output, Store(str(tmp_path / "export")), file_format=form)


@pytest.mark.parametrize(("latent", "model", "scaled"), [(SD3, "sd3", False), (FLUX, "flux", True)])
def test_files_have_names_and_keys_of_sd_scripts(
    latent: LatentContract,
    model: str,
    scaled: bool,
    tmp_path: Path,
    crops: list[np.ndarray],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loader of sd-scripts looks for the size of the image in the name, and of the latent in the keys."""
    output = make_output(tmp_path, crops, latent=latent)
    export(output, Store(str(tmp_path / "export")), file_format="npz", scaled=scaled)
    assert "sd-scripts" not in caplog.text
    for name, (width, height) in SIZES.items():
        with np.load(tmp_path / f"export/{Path(name).stem}_{width:04d}x{height:04d}_{model}.npz") as file:
            suffix = f"_{height // 4}x{width // 4}"
            assert sorted(file.files) == sorted(f"{key}{suffix}" for key in ("latents", "original_size", "crop_ltrb"))
            assert file[f"original_size{suffix}"].tolist() == [width, height]


def test_files_of_resized_images_fit_their_bucket(tmp_path: Path, crops: list[np.ndarray]) -> None:
    """The latent has the size of the bucket. sd-scripts computes crop_ltrb for an image that is scaled to fit into it."""
    output = make_output(tmp_path, crops, {"image": {"resize": "bucket:512:16"}})
    export(output, Store(str(tmp_path / "export")), file_format="npz")
    for name, shape, box in (("a", (4, 4, 8), [5, 0, 26, 16]), ("b", (4, 8, 4), [0, 5, 16, 26])):
        with np.load(tmp_path / f"export/{name}.npz") as file:
            assert file["latents"].shape == shape
            assert tuple(file["original_size"]) == SIZES[f"{name}.png"]
            assert file["crop_ltrb"].tolist() == box


def test_checkpoint_without_factors_is_refused(tmp_path: Path, crops: list[np.ndarray]) -> None:
    output = make_output(tmp_path, crops, latent=LatentContract(channels=4, factor=4))
    with pytest.raises(ConfigError, match="--scaled: the checkpoint AutoencoderKL has no scaling_factor"):
        export(output, Store(str(tmp_path / "export")), scaled=True)
    assert not (tmp_path / "export").exists()
    record = export(output, Store(str(tmp_path / "export")))
    assert json.loads((tmp_path / "export/export.json").read_text())["scaling_factor"] is record["scaling_factor"] is None
