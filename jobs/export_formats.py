"""How a part of an export is written: each format takes a table and puts files below a folder of DEST."""

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.models.checkpoint import replace_non_finite
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.storage import Store

VECTORS = ("latent", "embedding")
ROW_GROUP_BYTES = 32_000_000
PAGE_BYTES = 64 * 1024
ZSTD_LEVEL = 3


def parquet(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """Floats split by byte, which alone read right in every reader that the tests try, and zstd; no dictionary for them."""
    vectors = [name for name in VECTORS if name in table.schema.names]
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[name for name in table.schema.names if name not in VECTORS],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in vectors} or None,
        row_group_size=max(1, ROW_GROUP_BYTES * len(table) // max(1, table.nbytes)),
        data_page_size=PAGE_BYTES,
        write_page_checksum=True,
    )
    dest.write(f"{folder}/part-{number:05d}.parquet", out.getvalue().to_pybytes())


def npy(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """`latent` (N,C,h,w) and `embedding` (N,D) as float32 arrays; the other columns as Parquet, in the same order."""
    for name in VECTORS:
        if name in table.schema.names:
            data = io.BytesIO()
            np.save(data, stacked(table, name))
            dest.write(f"{folder}/part-{number:05d}.{name}.npy", data.getvalue())
    rest = table.drop_columns([name for name in VECTORS if name in table.schema.names])
    parquet(dest, folder, number, rest)


def lance(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """One dataset for a folder, to which each part is a commit."""
    import lance

    lance.write_dataset(table, f"{dest.full(folder)}.lance", mode="append" if number else "create")


def webdataset(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """A tar with IMAGE_ID.latent.npy, IMAGE_ID.embedding.npy and IMAGE_ID.json for each image."""
    arrays = {name: stacked(table, name) for name in VECTORS if name in table.schema.names}
    rows = table.drop_columns(list(arrays)).to_pylist()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for place, row in enumerate(rows):
            members = {
                "json": json.dumps(replace_non_finite(row), ensure_ascii=False, allow_nan=False, default=str).encode()
            }
            for name, array in arrays.items():
                data = io.BytesIO()
                np.save(data, array[place])
                members[f"{name}.npy"] = data.getvalue()
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{row['image_id']}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    dest.write(f"{folder}/part-{number:05d}.tar", out.getvalue())


def stacked(table: pa.Table, name: str) -> np.ndarray:
    """A column of vectors as one array: latents (N,C,h,w), as the schema says, embeddings (N,D)."""
    column = table[name].combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy()
    shape = json.loads(table.schema.metadata[b"imagemill"])["latent_shape"] if name == "latent" else [-1]
    return flat.reshape(len(column), *shape)


FORMATS: dict[str, Callable[[Store, str, int, pa.Table], Any]] = {
    "lance": lance,
    "npy": npy,
    "parquet": parquet,
    "webdataset": webdataset,
}


def check_format(name: str, dest: Store, columns: list[str]) -> None:
    """Raises: ConfigError when a format is unknown, not installed, or cannot write to DEST."""
    if name not in FORMATS:
        raise ConfigError(f"--format {name}: one of {', '.join(FORMATS)} is expected")
    if name == "webdataset" and "image_id" not in columns:
        raise ConfigError("--format webdataset names its members by image_id: add it to --columns")
    if name == "lance":
        try:
            import lance  # noqa: F401
        except ImportError:
            raise ConfigError("--format lance needs a package that is not installed: pip install pylance") from None
        if not dest.local:
            raise ConfigError(f"--format lance writes to a local folder, not to {dest.url}")
