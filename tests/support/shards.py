"""Write shards, and list and commit their images."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import ListedEntry, ListedImage, SourceConfig
from imagemill.pipeline.storage_config import StorageConfig


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            add(tar, name, data)


def damage(parquet: Path, group: int) -> None:
    """Overwrite the beginning of the first column of a row group."""
    place = pq.read_metadata(parquet).row_group(group).column(0).data_page_offset
    with parquet.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 32)


def pictures(crops: list[np.ndarray], count: int) -> list[bytes]:
    return [encode_rgb(crop, "PNG") for crop in crops[:count]]


def listed(path: Path, **config: Any) -> list[ListedEntry]:
    return list(list_images(open_input(str(path), StorageConfig(), SourceConfig(**config))))


def images(path: Path, **config: Any) -> dict[str, ListedImage]:
    return {image.rel_path: image for image in listed(path, **config) if isinstance(image, ListedImage)}


def rows(output: Path, folder: str = "results") -> dict[str, dict[str, Any]]:
    found = [row for part in (output / folder).glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    return {row["rel_path"]: row for row in found}
