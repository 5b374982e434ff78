"""Shard formats: one row of the table makes a new format an input."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.sources.input import find_images, is_input_file, open_input
from imagemill.pipeline.sources.shard_formats import SHARD_FORMATS
from imagemill.pipeline.sources.source import ListedEntry, ListedImage, ShardFormat, SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import listed, pictures
from tests.support.worker_jobs import job_here, processor_here


def index_zip(store: Store, path: str, config: SourceConfig) -> Iterator[ListedEntry]:
    """List the members of a ZIP archive; the offset of a member is its number."""
    with zipfile.ZipFile(io.BytesIO(store.read(path))) as archive:
        for number, member in enumerate(archive.infolist()):
            data = archive.read(member)
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            yield ListedImage(f"{path}/{member.filename}", len(data), digest, path, number)


class ZipReader:
    """Read the members of one ZIP archive."""

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.archive = zipfile.ZipFile(io.BytesIO(store.read(path)))

    def read(self, offset: int, size: int) -> bytes:
        return self.archive.read(self.archive.infolist()[offset])


@pytest.fixture
def zip_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the format of this file to the table."""
    monkeypatch.setitem(SHARD_FORMATS, "zip", ShardFormat((".zip",), index_zip, ZipReader))


def write_zip(path: Path, photos: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, photo in enumerate(photos):
            archive.writestr(f"{number}.png", photo)


@pytest.mark.usefixtures("zip_format")
@pytest.mark.parametrize("name", ["", "a.ZIP"], ids=["folder", "file"])
def test_new_shard_format_becomes_rows(tmp_path: Path, crops: list[np.ndarray], name: str) -> None:
    """A shard of a new format, or a folder that contains it, is listed, read and committed."""
    write_zip(tmp_path / "in/a.ZIP", pictures(crops, 3))
    config = RunConfig(task="denoise", input=str(tmp_path / "in" / name), output=str(tmp_path / "out"))
    job = resolve(config)
    plan = build_plan(job, store_indexes=True)
    assert plan.todo["rel_path"].to_pylist() == [f"a.ZIP/{number}.png" for number in range(3)]
    rows = pa.concat_tables(processor_here(job_here(job))(plan.todo)).to_pylist()
    assert [row["stage"] for row in rows] == [None] * 3
    assert [row["output_uri"] for row in rows] == [f"images/a.ZIP/{number}.png" for number in range(3)]
    assert len(list((tmp_path / "out/shards").iterdir())) == 1


@pytest.mark.usefixtures("zip_format")
def test_new_shard_format_is_found_by_name(tmp_path: Path, crops: list[np.ndarray]) -> None:
    write_zip(tmp_path / "in/a.zip", pictures(crops, 2))
    source = open_input(str(tmp_path / "in"), StorageConfig(), SourceConfig())
    assert [image.offset for image in find_images(source, {"a.zip/1.png"}, Store(str(tmp_path / "out")))] == [1]
    assert is_input_file("s3://bucket/a.zip")


def test_unknown_shard_format_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", [])
    with pytest.raises(ConfigError, match=r"\.csv.*\.parquet.*\.tar"):
        listed(tmp_path / "a.zip")
    assert not is_input_file("a.zip")


@pytest.mark.usefixtures("zip_format")
def test_valid_inputs_name_a_new_shard_format(tmp_path: Path) -> None:
    (tmp_path / "a.rar").touch()
    with pytest.raises(ConfigError, match=r"\.tzst, \.zip"):
        listed(tmp_path / "a.rar")
