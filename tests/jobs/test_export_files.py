"""Exports with one file for each image: names, keys and sizes as trainers read them, and no foreign file is replaced."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from imagemill.jobs.export import export, show_export
from imagemill.pipeline import read_latents
from imagemill.pipeline.errors import ConfigError, VerificationError
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Store:
    """Return an OUTPUT of latents of two shapes, from images in a folder; two images differ in the extension alone."""
    folder = tmp_path_factory.mktemp("photos")
    sources = {"wide/0.png": crops[0], "wide/1.png": crops[1], "tall.v2.png": crops[2].transpose(1, 0, 2)}
    return compressed(folder, sources | {"same.png": crops[3], "same.bmp": crops[4]}, "compress-small")


def latents_of(output: Store) -> dict[str, np.ndarray]:
    """Return the latent (C,h,w) of each rel_path."""
    batches = read_latents(output.url, columns=["rel_path"]).batches()
    return {
        name: latent for rows, values in batches for name, latent in zip(rows["rel_path"].to_pylist(), values, strict=True)
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, except the record of written files."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".imagemill" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    return load_file(path)


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_each_image_is_one_file_named_like_the_image(
    photos: Store, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_export(photos, Store(str(tmp_path)), file_format=form)
    assert f"5 images, latents of 2 shapes, in 5 {form} files below {tmp_path}" in capsys.readouterr().out
    expected = latents_of(photos)
    names = {"wide/0.png": f"wide/0.{form}", "wide/1.png": f"wide/1.{form}", "tall.v2.png": f"tall.v2.{form}"}
    for name, file in names.items():
        arrays = read_file(tmp_path / file)
        np.testing.assert_array_equal(arrays["latents"], expected[name])
        assert arrays["latents"].dtype == np.float32
        width, height = (96, 128) if name == "tall.v2.png" else (128, 96)
        assert arrays["original_size"].tolist() == [width, height]
        assert arrays["crop_ltrb"].tolist() == [0, 0, width, height]
    # A trainer would take same.npz for both images, so it gets none.
    files = set(contents(tmp_path)) - {"export.json", *names.values()}
    assert {Path(file).parent.name for file in files} == {"_renamed"}
    renamed = [read_file(tmp_path / file)["latents"] for file in files]
    for name in ("same.png", "same.bmp"):
        assert any(np.array_equal(latent, expected[name]) for latent in renamed)
    record = json.loads((tmp_path / "export.json").read_text())
    assert (record["rows"], record["format"], record["left_out"]) == (5, form, [])
    with pytest.raises(ConfigError, match=f"export to {form}"):
        read_latents(str(tmp_path))


def test_safetensors_say_what_they_hold(photos: Store, tmp_path: Path) -> None:
    export(photos, Store(str(tmp_path)), file_format="safetensors")
    with safetensors.safe_open(tmp_path / "wide/0.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["rel_path"] == "wide/0.png"
    assert json.loads(metadata["about"])["model_id"] == "compress-small"


def test_files_next_to_images_grow_run_by_run(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    """An export of each run into the folder of the images adds files, and replaces those of changed images only."""
    first = compressed(tmp_path, {name: pieces[name] for name in ("0.png", "1.png")}, fence=1)
    dest = Store(str(tmp_path / "in"))
    images = contents(tmp_path / "in")
    export(first, dest, file_format="npz")
    before = contents(tmp_path / "in")
    assert before.keys() - images.keys() == {"0.npz", "1.npz", "export.json"}
    output = compressed(tmp_path, {"1.png": pieces["2.png"], "2.png": pieces["3.png"]}, fence=2)
    runs = sorted(path.name for path in (tmp_path / "out/runs").iterdir())
    assert export(output, dest, file_format="npz", run=runs[1])["rows"] == 2
    after = contents(tmp_path / "in")
    assert after.keys() - before.keys() == {"2.npz", "2.png"}
    assert after["0.npz"] == before["0.npz"]
    assert after["1.npz"] != before["1.npz"]
    # Exporting everything again changes nothing.
    export(output, dest, file_format="npz")
    assert {name: data for name, data in contents(tmp_path / "in").items() if name != "export.json"} == {
        name: data for name, data in after.items() if name != "export.json"
    }


def test_foreign_files_are_not_replaced(photos: Store, tmp_path: Path) -> None:
    dest = Store(str(tmp_path / "dest"))
    dest.write("wide/1.npz", b"of the trainer")
    with pytest.raises(ConfigError, match=r"wide/1\.npz: exists, and imagemill did not write it"):
        export(photos, dest, file_format="npz")
    assert contents(tmp_path / "dest") == {"wide/1.npz": b"of the trainer"}
    export(photos, dest, file_format="npz", overwrite=True)
    dest.write("wide/0.npz", b"changed")
    with pytest.raises(ConfigError, match=r"wide/0\.npz: exists, and imagemill did not write it or it was changed"):
        export(photos, dest, file_format="npz")


def test_interrupted_file_export_continues(photos: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imagemill.jobs import export_files

    dest, made = Store(str(tmp_path)), 0

    def crash(*arguments: Any) -> bytes:
        nonlocal made
        made += 1
        if made == 3:
            raise OSError("the disk is gone")
        return export_files.npz(*arguments)

    monkeypatch.setitem(export_files.FILE_FORMATS, "npz", crash)
    with pytest.raises(OSError, match="gone"):
        export(photos, dest, file_format="npz")
    assert json.loads(dest.read("export.json"))["rows"] is None
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="holds an export with format npz, not safetensors"):
        export(photos, dest, file_format="safetensors")
    export(photos, dest, file_format="npz")
    assert len(list(tmp_path.rglob("*.npz"))) == json.loads(dest.read("export.json"))["rows"] == 5


def test_damaged_latent_gets_no_file(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    output = compressed(tmp_path, {name: pieces[name] for name in ("0.png", "1.png", "2.png")}, rows_per_part=1)
    path = list_parts(output, "results")[0]
    output.write(path, output.read(path)[:-100])
    with pytest.raises(VerificationError, match=f"left out, because damaged: .*{path}"):
        show_export(output, Store(str(tmp_path / "files")), file_format="npz")
    assert len(list((tmp_path / "files").glob("*.npz"))) == 2


def test_invalid_file_export_writes_nothing(photos: Store, tmp_path: Path) -> None:
    dest = Store(str(tmp_path / "dest"))
    for options, message in (
        ({"file_format": "npz", "columns": ["latent"]}, "--columns: not available with --format npz"),
        ({"file_format": "npz", "layout": "one"}, "--layout one: is for --format parquet, not for npz"),
        ({"layout": "two"}, "--layout two: unknown layout. Valid: shapes, one"),
        ({"overwrite": True}, "--overwrite: not available with --format parquet"),
        ({"file_format": "npz", "scaled": True}, "--scaled: the checkpoint compress-small has no scaling_factor"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(photos, dest, **options)
    assert not (tmp_path / "dest").exists()
    export(photos, dest)
    with pytest.raises(ConfigError, match="holds an export with format parquet, not npz"):
        export(photos, dest, file_format="npz")
