"""Export in every format, read back and decoded; invalid exports fail with one line."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.jobs.export import export, show_export
from imagemill.jobs.export_formats import webdataset
from imagemill.models import checkpoint as checkpoints
from imagemill.pipeline import read_latents
from imagemill.pipeline.errors import ConfigError, OutputHeld
from imagemill.pipeline.output.lease import FOLDER, Lease
from imagemill.pipeline.output.neighbours import load_collection
from imagemill.pipeline.storage import Store
from tests.support.outputs import COUNT, compressed


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, np.ndarray]) -> Store:
    """Return an OUTPUT of latents of one shape, 4×7×7, of which one source file has been deleted."""
    folder = tmp_path_factory.mktemp("digits")
    output = compressed(folder, pieces, reconstruct=True)
    (folder / "in/3.png").unlink()
    return output


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Store:
    """Return an OUTPUT of latents of two shapes and two steps, partly entropy coded."""
    folder = tmp_path_factory.mktemp("photos")
    wide = {f"wide/{number}.png": crop for number, crop in enumerate(crops[:3])}
    compressed(folder, wide, "compress-small", 1, step=20, reconstruct=True)
    tall = {f"tall/{number}.png": crop.transpose(1, 0, 2) for number, crop in enumerate(crops[:2])}
    return compressed(folder, tall, "compress-small", 2, step=40, coding="coded", reconstruct=True)


@pytest.fixture
def exported(digits: Store, tmp_path: Path) -> Path:
    export(digits, Store(str(tmp_path / "export")), pool="gem")
    return tmp_path / "export"


def test_export_writes_rows_and_marks_removed_images(digits: Store, exported: Path) -> None:
    table = pq.read_table(exported / "latents")
    assert table.schema.field("latent").type == pa.list_(pa.float32(), 196)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    removed_flags = dict(zip(table["rel_path"].to_pylist(), table["removed"].to_pylist(), strict=True))
    assert removed_flags == {f"{number}.png": number == 3 for number in range(COUNT)}
    metadata = json.loads(table.schema.metadata[b"imagemill"])
    record = json.loads((exported / "export.json").read_text())
    assert (record["rows"], record["removed"], record["shapes"]) == (COUNT, 1, {"4x7x7": COUNT})
    assert metadata["latent_shape"] == [4, 7, 7]
    assert metadata["checkpoint_sha256"] == record["checkpoint_sha256"] == checkpoints.read_card("conv-mnist").sha256
    width, zero = np.array(metadata["width"]["26.0"], np.float32), metadata["zero"]
    stored_rows = pa.concat_tables(read_latents(digits.url).state.tables(["rel_path", "latent"])).to_pylist()
    values = dict(zip(table["rel_path"].to_pylist(), table["latent"].to_pylist(), strict=True))
    for row in stored_rows:
        symbols = np.array(row["latent"], np.float32).reshape(4, 7, 7) - 128
        np.testing.assert_array_equal(
            (symbols - zero) * width[:, None, None], np.reshape(values[row["rel_path"]], (4, 7, 7))
        )
    column = pq.ParquetFile(next(exported.glob("latents/*.parquet"))).metadata.row_group(0)
    chunk = next(c for n in range(column.num_columns) if (c := column.column(n)).path_in_schema == "latent.list.element")
    assert "BYTE_STREAM_SPLIT" in chunk.encodings
    assert chunk.compression == "ZSTD"


def test_export_values_are_within_half_a_step(digits: Store, pieces: dict[str, np.ndarray]) -> None:
    """Exported values differ from the output of the encoder by at most half a quantiser step."""
    import torch

    from imagemill.models.colour import rgb_to_luma

    model = checkpoints.build(*checkpoints.read("conv-mnist"))
    codes = read_latents(digits.url, columns=["rel_path"])
    for name, values in zip(codes.arrow()["rel_path"].to_pylist(), codes.numpy(), strict=True):
        x = rgb_to_luma(torch.from_numpy(np.ascontiguousarray(pieces[name].transpose(2, 0, 1)))[None] / 255)
        encoded = np.minimum(model.encode(x)[0].numpy(), model.peak.numpy()[:, None, None])
        assert np.abs(values - encoded).max() <= model.peak.max().item() / 255 / 2 + 1e-5


def test_decode_equals_the_reconstruction_of_the_run(digits: Store, photos: Store, tmp_path: Path) -> None:
    """An output and its export decode to the images that the run reconstructed."""
    for number, output in enumerate((digits, photos)):
        export(output, Store(str(tmp_path / f"export{number}")), pool="none")
        for source in (output, Store(str(tmp_path / f"export{number}"))):
            dest = tmp_path / f"{number}-{Path(source.root).name}"
            decode_output(source, Store(str(dest)))
            reference = Path(output.root).parent / "reconstructed"
            names = sorted(str(p.relative_to(reference)) for p in reference.rglob("*.png"))
            assert sorted(str(p.relative_to(dest)) for p in dest.rglob("*.png")) == names
            for name in names:
                np.testing.assert_array_equal(np.asarray(Image.open(dest / name)), np.asarray(Image.open(reference / name)))


def test_decode_where_selects_rows(digits: Store, exported: Path, tmp_path: Path) -> None:
    for number, source in enumerate((digits, Store(str(exported)))):
        dest = tmp_path / f"some{number}"
        assert decode_output(source, Store(str(dest)), "rel_path IN ('1.png', '5.png')") == 2
        assert sorted(p.name for p in dest.glob("*.png")) == ["1.png", "5.png"]
        assert decode_output(source, Store(str(dest)), "psnr_db > 1000") == 0
        with pytest.raises(ConfigError, match="--where 'psnr > 3'"):
            decode_output(source, Store(str(dest)), "psnr > 3")


def test_decode_writes_only_into_dest(exported: Path, tmp_path: Path) -> None:
    """An export whose image_id values are paths cannot write outside the destination."""
    for part in (exported / "latents").iterdir():
        table = pq.read_table(part)
        hostile = {"rel_path": [f"/{n}.png" for n in range(len(table))], "image_id": ["../../out"] * len(table)}
        for name, values in hostile.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        pq.write_table(table, part)
    dest = tmp_path / "a/dest"
    assert decode_output(Store(str(exported)), Store(str(dest))) == COUNT
    assert len(list(dest.rglob("*.png"))) == len(list(tmp_path.rglob("*.png"))) == COUNT


def test_export_has_one_folder_per_latent_shape(photos: Store, tmp_path: Path) -> None:
    """Latents go into one folder per shape; an export of embeddings only uses a single folder."""
    record = export(photos, Store(str(tmp_path / "latents")))
    assert record["shapes"] == {"96x12x16": 3, "96x16x12": 2}
    assert sorted(record["width"]) == ["20.0", "40.0"]
    for shape, count in record["shapes"].items():
        assert len(pq.read_table(tmp_path / f"latents/latents/shape={shape}")["latent"]) == count
    assert export(photos, Store(str(tmp_path / "vectors")), columns=["rel_path", "embedding"])["inputs_not_listed"] is None
    table = pq.read_table(tmp_path / "vectors/latents")
    assert table.schema.names == ["rel_path", "embedding"]
    assert len(table) == 5
    codes = read_latents(str(tmp_path / "latents"))
    assert sorted(values.shape for _, values in codes.batches()) == [(2, 96, 16, 12), (3, 96, 12, 16)]
    with pytest.raises(ConfigError, match="the latents have 2 shapes: 96×12×16, 96×16×12"):
        codes.numpy()
    assert read_latents(photos.url, where="orig_width = 96").numpy().shape == (2, 96, 16, 12)


def test_layout_one_writes_ragged_lists_in_one_folder(photos: Store, tmp_path: Path) -> None:
    """Readers see one type of column for all shapes, and decoding gives the images of the run."""
    dest = Store(str(tmp_path / "one"))
    record = export(photos, dest, layout="one", pool="flatten", columns=["rel_path", "latent", "embedding"])
    assert record["parts"] == {"latents": 1}
    table = pq.read_table(tmp_path / "one/latents")
    assert table.schema.field("latent").type == table.schema.field("embedding").type == pa.list_(pa.float32())
    batches = read_latents(photos.url, columns=["rel_path"]).batches()
    expected = {
        name: value for rows, values in batches for name, value in zip(rows["rel_path"].to_pylist(), values, strict=True)
    }
    for row in table.to_pylist():
        np.testing.assert_array_equal(np.float32(row["latent"]).reshape(row["latent_shape"]), expected[row["rel_path"]])
        np.testing.assert_array_equal(row["latent"], row["embedding"])
    assert sorted(values.shape for _, values in read_latents(dest.url).batches()) == [(2, 96, 16, 12), (3, 96, 12, 16)]
    export(photos, Store(str(tmp_path / "all")), layout="one")
    assert decode_output(Store(str(tmp_path / "all")), Store(str(tmp_path / "images"))) == 5
    reference = Path(photos.root).parent / "reconstructed"
    for path in reference.rglob("*.png"):
        decoded = tmp_path / "images" / path.relative_to(reference)
        np.testing.assert_array_equal(np.asarray(Image.open(decoded)), np.asarray(Image.open(path)))


@pytest.mark.parametrize("form", ["npy", "webdataset", pytest.param("lance", marks=pytest.mark.external)])
def test_export_formats_hold_the_same_values(digits: Store, form: str, tmp_path: Path) -> None:
    codes = read_latents(digits.url)
    expected = dict(zip(codes.arrow()["image_id"].to_pylist(), codes.numpy(), strict=True))
    export(digits, Store(str(tmp_path / "out")), file_format=form)
    read = {"npy": from_npy, "webdataset": from_tar, "lance": from_lance}[form]
    values_by_name = read(tmp_path / "out")
    assert values_by_name.keys() == expected.keys()
    for name, (latent, embedding) in values_by_name.items():
        np.testing.assert_array_equal(latent.reshape(4, 7, 7), expected[name])
        np.testing.assert_allclose(embedding, expected[name].mean((1, 2)), rtol=1e-6)
    with pytest.raises(ConfigError, match=f"export to {form}"):
        read_latents(str(tmp_path / "out"))


def test_webdataset_json_has_no_nan(tmp_path: Path) -> None:
    """NaN and infinity become null, because JSON readers reject them."""
    webdataset(Store(str(tmp_path)), "latents", 0, pa.table({"image_id": ["a"], "psnr_db": [float("inf")]}))
    with tarfile.open(tmp_path / "latents/part-00000.tar") as tar:
        member = tar.extractfile("a.json")
        assert member
        assert json.loads(member.read(), parse_constant=pytest.fail) == {"image_id": "a", "psnr_db": None}


def test_export_tells_whether_it_can_be_decoded(photos: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["rel_path", "orig_width", "orig_height", "exif_orientation", "step", "checkpoint_sha256"]
    columns += ["latent_shape", "latent_crc32", "latent"]
    for number, (options, message, is_decodable) in enumerate(
        (
            ({}, "5 images, latents of 2 shapes, in 2 parts below", True),
            ({"columns": columns}, "5 images, latents of 2 shapes, in 2 parts below", True),
            ({"columns": columns[1:]}, "5 images, latents of 2 shapes, in 2 parts below", False),
            ({"columns": ["rel_path", "embedding"], "pool": "gem"}, "5 images, embeddings (gem), in 1 part below", False),
            ({"columns": ["rel_path"]}, "5 images, 1 column, in 1 part below", False),
            ({"file_format": "npy"}, "latents of 2 shapes", False),
        )
    ):
        dest, images = Store(str(tmp_path / f"{number}")), Store(str(tmp_path / f"{number}-images"))
        show_export(photos, dest, **options)
        assert message in capsys.readouterr().out
        assert ("decode" in json.loads(dest.read("export.json"))) == is_decodable
        if is_decodable:
            assert decode_output(dest, images) == 5
        else:
            with pytest.raises(ConfigError):
                decode_output(dest, images)


def from_npy(place: Path) -> dict[str, Any]:
    stem = place / "latents/part-00000"
    latent, embedding = (np.load(f"{stem}.{name}.npy", mmap_mode="r") for name in ("latent", "embedding"))
    assert latent.shape == (COUNT, 4, 7, 7)
    return dict(
        zip(pq.read_table(f"{stem}.parquet")["image_id"].to_pylist(), zip(latent, embedding, strict=True), strict=True)
    )


def from_tar(place: Path) -> dict[str, Any]:
    with tarfile.open(place / "latents/part-00000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    ids = sorted({name.split(".")[0] for name in content})
    assert json.loads(content[f"{ids[0]}.json"])["image_id"] == ids[0]
    return {i: tuple(np.load(io.BytesIO(content[f"{i}.{n}.npy"])) for n in ("latent", "embedding")) for i in ids}


def from_lance(place: Path) -> dict[str, Any]:
    import lance

    rows = lance.dataset(f"{place}/latents.lance").to_table().to_pylist()
    return {row["image_id"]: (np.array(row["latent"], np.float32), row["embedding"]) for row in rows}


def test_export_selects_run_and_day(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    compressed(tmp_path, {name: pieces[name] for name in ("0.png", "1.png")}, fence=1)
    output = compressed(tmp_path, {"1.png": pieces["2.png"], "2.png": pieces["3.png"]}, fence=2)
    runs = sorted(path.name for path in (tmp_path / "out/runs").iterdir())

    def rows(number: int, **which: Any) -> list[tuple[str, str]]:
        export(output, Store(str(tmp_path / f"x{number}")), **which)
        table = pq.read_table(tmp_path / f"x{number}/latents")
        return sorted(zip(table["rel_path"].to_pylist(), table["run_id"].to_pylist(), strict=True))

    assert rows(1) == [("0.png", runs[0]), ("1.png", runs[1]), ("2.png", runs[1])]
    assert rows(2, run=runs[0]) == rows(3, as_of="2026-03-01") == [("0.png", runs[0]), ("1.png", runs[0])]
    with pytest.raises(ConfigError, match="The oldest row is of 2026-03-01T"):
        rows(4, as_of="2026-02-01")


def test_likeness_pool_equals_search_vectors(photos: Store, digits: Store, tmp_path: Path) -> None:
    """`--pool likeness` exports the vectors of `search`, for codecs only."""
    dest = Store(str(tmp_path / "likeness"))
    export(photos, dest, pool="likeness", columns=["rel_path", "embedding"])
    table = pq.read_table(tmp_path / "likeness/latents")
    values_by_name = dict(zip(table["rel_path"].to_pylist(), np.stack(table["embedding"].to_numpy()), strict=True))
    # `search` compares only rows of one step, here the two newest rows.
    collection = load_collection(photos)
    _, batches = collection.vectors(["rel_path"], [])
    search_vectors: dict[str, np.ndarray] = {}
    for rows, vectors in batches:
        search_vectors |= dict(zip(rows["rel_path"].to_pylist(), vectors, strict=True))
    assert (len(search_vectors), len(values_by_name)) == (2, 5)
    for name, vector in search_vectors.items():
        np.testing.assert_allclose(values_by_name[name], vector, atol=1e-6)
    with pytest.raises(ConfigError, match="--pool likeness: not available for conv-mnist"):
        export(digits, Store(str(tmp_path / "x")), pool="likeness")
    assert not (tmp_path / "x").exists()


def test_export_of_several_models_needs_a_choice(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    compressed(tmp_path, {"0.png": pieces["0.png"], "1.png": pieces["1.png"]}, "conv-mnist", 1)
    output = compressed(tmp_path, {"1.png": pieces["1.png"]}, "conv-mnist-transposed", 2)
    with pytest.raises(ConfigError, match=r"2 models.*conv-mnist .*: 1 row; conv-mnist-transposed .*--model"):
        export(output, Store(str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
    assert export(output, Store(str(tmp_path / "x")), model="conv-mnist")["rows"] == 2
    digest = checkpoints.read_card("conv-mnist-transposed").sha256
    assert export(output, Store(str(tmp_path / "y")), model=digest[:8])["model_id"] == "conv-mnist-transposed"


def test_invalid_export_writes_nothing(digits: Store, exported: Path, tmp_path: Path) -> None:
    """Each invalid argument is a ConfigError, and no file is written."""
    target = Store(str(tmp_path / "free"))
    for options, message in (
        ({"columns": ["colour"]}, "no column colour. Valid: image_id"),
        ({"columns": ["embedding"], "pool": "none"}, r"no column embedding \(--pool none computes no embedding\)"),
        ({"pool": "max"}, "--pool max: unknown pool. Valid: none, flatten, gem, likeness, mean"),
        ({"file_format": "csv"}, "--format csv: unknown format. Valid: lance, npy"),
        ({"file_format": "webdataset", "columns": ["latent"]}, "image_id"),
        ({"run": "x"}, "run x has no rows"),
        ({"model": "x"}, "model x has no rows"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(digits, target, **options)
    assert not Path(target.root).exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.jpg").write_bytes(b"mine")
    for dest, message in (
        (tmp_path / "photos", "not empty"),
        (exported, "holds a finished export"),
        (Path(digits.root) / "export", "overlap: one contains the other"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(digits, Store(str(dest)))
    assert (tmp_path / "photos/mine.jpg").exists()
    (tmp_path / "empty/runs").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no rows yet"):
        export(Store(str(tmp_path / "empty")), target)


def test_interrupted_export_starts_again(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers refuse an interrupted export; the same command replaces it."""
    from imagemill.jobs import export_formats

    dest = tmp_path / "export"

    def crash(*arguments: Any) -> None:
        export_formats.parquet(*arguments)
        raise OSError("the disk is gone")

    monkeypatch.setitem(export_formats.FORMATS, "parquet", crash)
    with pytest.raises(OSError, match="gone"):
        export(digits, Store(str(dest)))
    monkeypatch.undo()
    assert (dest / "UNFINISHED").exists()
    assert not (dest / "export.json").exists()
    (dest / "latents/part-00007.parquet").write_bytes(b"of the one before")
    for read in (lambda: read_latents(str(dest)), lambda: decode_output(Store(str(dest)), Store(str(tmp_path / "x")))):
        with pytest.raises(ConfigError, match="cut off"):
            read()
    export(digits, Store(str(dest)))
    assert len(pq.read_table(dest / "latents")) == COUNT
    assert not (dest / "UNFINISHED").exists()


def test_export_that_lost_its_lease_has_no_manifest(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imagemill.jobs import export_formats

    dest, write = Store(str(tmp_path / "export")), export_formats.parquet

    def write_after_takeover(*arguments: Any) -> None:
        dest.write(f"{FOLDER}/00000002.json", b"{}")
        write(*arguments)

    monkeypatch.setitem(export_formats.FORMATS, "parquet", write_after_takeover)
    with pytest.raises(OutputHeld, match="another run took over"):
        export(digits, dest)
    assert not dest.exists("export.json")
    assert dest.exists("UNFINISHED")


def test_export_keeps_one_that_just_finished(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that finishes while another starts is not deleted."""
    dest = Store(str(tmp_path / "export"))

    def create_lease_late(place: Store) -> Lease:
        monkeypatch.undo()
        export(digits, place)
        return Lease(place)

    monkeypatch.setattr("imagemill.jobs.export.Lease", create_lease_late)
    with pytest.raises(ConfigError, match="holds a finished export"):
        export(digits, dest)
    assert len(read_latents(dest.url).numpy()) == COUNT


def test_removed_is_null_for_runs_without_config(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    """The input of such a run is not known, so its images may still exist."""
    output = compressed(tmp_path, pieces)
    (tmp_path / "in/3.png").unlink()
    for path in (tmp_path / "out/runs").glob("*/config.yaml"):
        path.unlink()
    record = export(output, Store(str(tmp_path / "export")))
    assert record["removed"] is None
    assert "config.yaml: missing" in record["inputs_not_listed"][0]
    assert pq.read_table(tmp_path / "export/latents")["removed"].null_count == COUNT


def test_removed_is_null_without_a_listed_input(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    output = compressed(tmp_path, pieces)
    (tmp_path / "in").rename(tmp_path / "moved")
    output.write("runs/older/config.yaml", b"task: compress\nof_a_later_version: 1\n")
    record = export(output, Store(str(tmp_path / "export")))
    assert record["removed"] is None
    assert "of_a_later_version" in record["inputs_not_listed"][0]
    assert "does not exist" in record["inputs_not_listed"][1]
    assert pq.read_table(tmp_path / "export/latents")["removed"].null_count == COUNT


def test_export_to_a_bucket_can_be_read(digits: Store, moto_bucket: str) -> None:
    export(digits, Store(f"{moto_bucket}/export"))
    codes = read_latents(f"{moto_bucket}/export", where="NOT removed", columns=["rel_path"])
    assert codes.numpy().shape == (COUNT - 1, 4, 7, 7)
    assert codes.arrow().schema.names == ["rel_path", "latent_shape", "latent"]


def test_export_parts_have_bounded_size(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.jobs.export_parts.PART_BYTES", 2_000)
    record = export(digits, Store(str(tmp_path / "export")))
    assert record["parts"] == {"latents": 2}
    assert len(pq.read_table(tmp_path / "export/latents")) == COUNT
