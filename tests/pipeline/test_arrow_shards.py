"""Folders of Hugging Face datasets: save_to_disk and to_parquet, splits, lists, captions, caches, cut and damaged files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.image_reader import ImageReader
from imagemill.pipeline.sources.input import open_input
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import images, listed, pictures, rows


def read_all(folder: Path, **config: Any) -> dict[str, bytes]:
    """Read every image of an input by its listing, the last one first and then in order."""
    found = images(folder, **config)
    reader = ImageReader(open_input(str(folder), StorageConfig(), SourceConfig(**config)), 1)

    def read(image: Any) -> bytes:
        return reader.image(vars(image) | {"source_etag": image.etag})

    read(list(found.values())[-1])
    return {name: read(image) for name, image in found.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, crops: Any) -> tuple[Path, list[bytes]]:
    """Two splits of a data set with captions, written by save_to_disk and to_parquet."""
    datasets = pytest.importorskip("datasets")
    photos = pictures(crops, 5)
    folder = tmp_path_factory.mktemp("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    splits = {
        name: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": photo, "path": None} for photo in some],
                "caption": [f"{name} {n}" for n in range(len(some))],
            },
            features=features,
        )
        for name, some in (("train", photos[:3]), ("test", photos[3:]))
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder / "disk"))
    for name, split in splits.items():
        split.to_parquet(str(folder / f"hub/data/{name}-00000-of-00001.parquet"))
    return folder, photos


def test_datasets_save_to_disk_becomes_rows(saved: Any, tmp_path: Path, engine: str) -> None:
    """All images of both splits become rows with their captions, on both engines; a second run has nothing to do."""
    folder, _ = saved
    config = RunConfig(
        task="denoise",
        input=str(folder / "disk"),
        output=str(tmp_path),
        engine=engine,
        source=SourceConfig(carry=["caption"]),
    )
    record = run(config)
    assert (record["ok"], record["rejected"], record["ignored_by_kind"]) == (5, 0, {"json": 5})
    captions = {name: json.loads(row["extra"])["caption"] for name, row in rows(tmp_path).items()}
    assert captions["train/data-00000-of-00001.arrow/row-000000002"] == "train 2"
    assert captions["test/data-00000-of-00001.arrow/row-000000000"] == "test 0"
    assert verify(Store(str(tmp_path))).problems == []
    if engine == "local":
        assert run(config)["planned"] == 0


def test_datasets_layouts_hold_the_same_bytes(saved: Any) -> None:
    folder, photos = saved
    for layout in ("disk", "hub"):
        assert sorted(read_all(folder / layout).values()) == sorted(photos)
    assert next(iter(read_all(folder / "hub"))) == "data/test-00000-of-00001.parquet/row-000000000"
    only_train = images(folder / "disk", include=["train/"])
    assert len(only_train) == 3


def test_datasets_caches_are_no_images(saved: Any) -> None:
    """`map` writes a changed copy of the data next to it."""
    datasets = pytest.importorskip("datasets")
    folder, _ = saved
    split = datasets.load_from_disk(str(folder / "disk" / "train"))
    split.map(lambda row: {"caption": row["caption"].upper()}, load_from_cache_file=False)
    assert list((folder / "disk" / "train").glob("cache-*.arrow"))
    assert "arrow" in listed(folder / "disk")
    assert len(images(folder / "disk")) == 5


def write(path: Path, table: pa.Table, as_file: bool = False, rows_each: int = 2) -> None:
    open_writer = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, open_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_each)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("kind", ["struct", "list", "dictionary", "view"])
def test_arrow_column_types_are_read(tmp_path: Path, crops: Any, kind: str, as_file: bool) -> None:
    photos = pictures(crops, 4)
    column = {
        "struct": lambda: pa.array([{"bytes": photo, "path": None} for photo in photos]),
        "list": lambda: pa.array([photos[:2], None, photos[2:]]),
        "dictionary": lambda: pa.array(photos).dictionary_encode(),
        "view": lambda: pa.array(photos, pa.binary_view()),
    }[kind]()
    write(tmp_path / "a.arrow", pa.table({"image": column, "id": [f"k{n}" for n in range(len(column))]}), as_file)
    names = ["k0/0", "k0/1", "k2/0", "k2/1"] if kind == "list" else ["k0", "k1", "k2", "k3"]
    assert read_all(tmp_path) == {f"a.arrow/{name}": photo for name, photo in zip(names, photos, strict=True)}


@pytest.mark.parametrize(
    ("end", "problem"), [(-8, "CutShard"), (-100, "BadShard"), ("between batches", "CutShard"), (0, "BadShard")]
)
def test_arrow_damaged_end_is_one_reject(tmp_path: Path, crops: Any, end: int | str, problem: str) -> None:
    """Rows before the damage are images. A stream that was cut between two batches is not taken for a complete one."""
    photos = pictures(crops, 4)
    path = tmp_path / "a.arrow"
    tables = [pa.table({"image": some}) for some in (photos[:2], photos[2:])]
    write(path, tables[0])
    first_batch = path.stat().st_size - 8
    write(path, pa.concat_tables(tables))
    path.write_bytes(path.read_bytes()[: first_batch if isinstance(end, str) else end])
    problems = [(image.problem or "").partition(":")[0] for image in images(tmp_path).values()]
    whole = {-8: 4, -100: 2, "between batches": 2, 0: 0}[end]
    assert problems == [""] * whole + [problem]


def test_arrow_without_images_is_another_file(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", pa.table({"n": [1]}))
    assert listed(tmp_path) == ["arrow"]


def test_hub_location_says_how_to_download(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hf download owner/name --repo-type dataset --local-dir FOLDER"):
        open_input("hf://datasets/owner/name@main", StorageConfig(), SourceConfig())
