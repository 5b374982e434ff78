"""Write a part of an export in one of four formats. `export_files` has the formats with one file for each image."""

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.jobs.export_files import FILE_FORMATS
from imagemill.models.checkpoint import replace_non_finite
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.storage import Store

VECTORS = ("latent", "embedding")
ROW_GROUP_BYTES = 32_000_000
PAGE_BYTES = 64 * 1024
ZSTD_LEVEL = 3


def parquet(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """Write a Parquet file.

    Vectors use BYTE_STREAM_SPLIT and zstd without a dictionary: it is the only float encoding that all readers in the tests
    read correctly.
    """
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
    """Write `latent` (N,C,h,w) and `embedding` (N,D) as float32 arrays, and the other columns as Parquet."""
    for name in VECTORS:
        if name in table.schema.names:
            data = io.BytesIO()
            np.save(data, stack_vectors(table, name))
            dest.write(f"{folder}/part-{number:05d}.{name}.npy", data.getvalue())
    rest = table.drop_columns([name for name in VECTORS if name in table.schema.names])
    parquet(dest, folder, number, rest)


def lance(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """Append the part to the dataset of its folder."""
    import lance

    lance.write_dataset(table, f"{dest.full(folder)}.lance", mode="append" if number else "create")


def webdataset(dest: Store, folder: str, number: int, table: pa.Table) -> None:
    """Write a tar with IMAGE_ID.latent.npy, IMAGE_ID.embedding.npy and IMAGE_ID.json for each image."""
    arrays = {name: stack_vectors(table, name) for name in VECTORS if name in table.schema.names}
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


def stack_vectors(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of vectors as one array: latents (N,C,h,w) with the shape in the schema, embeddings (N,D)."""
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
    """Check that a format can be written.

    Raises:
        ConfigError: when the format is unknown or not installed, or cannot write to `dest` or without a column.
    """
    valid = sorted([*FORMATS, *FILE_FORMATS])
    if name not in valid:
        raise ConfigError(f"--format {name}: unknown format. Valid: {', '.join(valid)}")
    if name == "webdataset" and "image_id" not in columns:
        raise ConfigError("--format webdataset: names files by image_id. Add image_id to --columns.")
    if name == "lance":
        try:
            import lance  # noqa: F401
        except ImportError:
            raise ConfigError("--format lance: needs pylance. Run: pip install pylance") from None
        if not dest.local:
            raise ConfigError(f"--format lance: cannot write to {dest.url}. Choose a local folder.")
