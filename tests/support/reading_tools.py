"""Check which tools read an export and `results/`: the table of docs/analysis.md.

python -m tests.support.reading_tools [--write]

creates an output, reads it with each tool and compares all values. It prints the table, or writes it into the page.
"""

import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

from imagemill.jobs.export import export
from imagemill.models.pooling import mean
from imagemill.pipeline import read_latents
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed

PAGE = Path(__file__).parents[2] / "docs" / "analysis.md"
BEGIN, END = "<!-- readers: written by python -m tests.support.reading_tools --write -->\n", "<!-- /readers -->"
Vectors = np.ndarray | list[np.ndarray]
Read = Callable[[Path, Path, str], tuple[list[str], Vectors]]
"""Functions of (folder of Parquet, empty folder, vector column) that return the vector of each image_id."""


def by_pyarrow(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    table = pq.read_table(parts, columns=["image_id", column])
    return table["image_id"].to_pylist(), [vector.values.to_numpy() for vector in table[column]]


def by_pandas(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    import pandas as pd

    frame = pd.read_parquet(parts, columns=["image_id", column])
    return frame["image_id"].tolist(), frame[column].tolist()


def by_polars(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    import polars as pl

    frame = pl.read_parquet(f"{parts}/**/*.parquet", columns=["image_id", column])
    return frame["image_id"].to_list(), [values.to_numpy() for values in frame[column]]


def by_duckdb(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    found = duckdb.sql(f"SELECT image_id, {column} FROM '{parts}/**/*.parquet'").fetchall()
    return [row[0] for row in found], [np.asarray(row[1]) for row in found]


def by_lance(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    import lance

    rows = ds.dataset(parts, format="parquet").scanner(columns=["image_id", column])
    table = lance.write_dataset(rows, f"{free}/{column}.lance").to_table()
    return table["image_id"].to_pylist(), [vector.values.to_numpy() for vector in table[column]]


def by_faiss(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    import faiss

    ids, found = by_pyarrow(parts, free, column)
    values = np.ascontiguousarray(found, np.float32)
    index = faiss.IndexFlatL2(values.shape[1])
    index.add(values)
    return ids, index.reconstruct_n(0, index.ntotal)


def by_datasets(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    from datasets import load_dataset

    asked = {"data_files": f"{parts}/**/*.parquet", "columns": ["image_id", column]}
    found = load_dataset("parquet", split="train", cache_dir=str(free), **asked).with_format("numpy")
    return [str(i) for i in found["image_id"]], list(found[column])


def by_ray(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    import ray.data

    rows = ray.data.read_parquet(str(parts)).select_columns(["image_id", column]).take_all()
    return [row["image_id"] for row in rows], [row[column] for row in rows]


def by_numpy(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    ids: list[str] = []
    values: list[np.ndarray] = []
    for path in sorted(parts.rglob(f"part-*.{column}.npy")):
        ids += pq.read_table(str(path).replace(f".{column}.npy", ".parquet"), columns=["image_id"])["image_id"].to_pylist()
        values += list(np.load(path).reshape(len(ids) - len(values), -1))
    return ids, values


def by_tarfile(parts: Path, free: Path, column: str) -> tuple[list[str], Vectors]:
    ids: list[str] = []
    values: list[np.ndarray] = []
    for path in sorted(parts.rglob("part-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(f".{column}.npy"):
                    ids.append(member.name.partition(".")[0])
                    values.append(np.load(io.BytesIO(tar.extractfile(member).read())).ravel())  # type: ignore[union-attr]
    return ids, values


READERS: dict[str, tuple[Read, str]] = {
    "DuckDB": (by_duckdb, "`FROM 'latents/**/*.parquet'`"),
    "FAISS": (by_faiss, "`index.add(…)` of the pyarrow array"),
    "Hugging Face datasets": (by_datasets, '`load_dataset("parquet", data_files="latents/**/*.parquet", columns=…)`'),
    "Lance": (by_lance, "`lance.write_dataset(ds.dataset(…).scanner(columns=…), …)`; or export `--format lance`"),
    "pandas": (by_pandas, '`pd.read_parquet("latents", columns=…)`'),
    "polars": (by_polars, '`pl.read_parquet("latents/**/*.parquet", columns=…)`'),
    "pyarrow": (by_pyarrow, '`pq.read_table("latents", columns=…)`'),
    "Ray Data": (by_ray, '`ray.data.read_parquet("latents")`'),
}
FORMATS: dict[str, tuple[str, Read, str]] = {
    "NumPy": ("npy", by_numpy, 'export `--format npy`, `np.load("…/part-00000.latent.npy")`'),
    "webdataset": (
        "webdataset",
        by_tarfile,
        "export `--format webdataset`: `tarfile`, or `wds.WebDataset(…).decode()`",
    ),
}
"""Readers of the other export formats."""


@dataclass(frozen=True)
class Example:
    """The same latents as exports, as rows of an output, and as arrays."""

    folder: Path
    """Folder with an export of each format."""
    results: Path
    vectors: dict[str, dict[str, np.ndarray]]
    """`latent` and `embedding`: float32 arrays by image_id."""
    symbols: dict[str, np.ndarray]


def example(folder: Path, shapes: int) -> Example:
    """Create 20 crops of a photo, 28 pixels high and at least 28 wide, with latents of 4×7×7 and similar shapes."""
    photo = np.asarray(Image.open(str(files("skimage.data").joinpath("chelsea.png"))).convert("RGB"))
    pieces = {f"{n}.png": photo[40:68, 12 * n : 12 * n + 28 + 4 * (n % shapes)] for n in range(20)}
    output = compressed(folder, pieces)
    for form in ("parquet", *(form for form, _, _ in FORMATS.values())):
        export(output, Store(str(folder / form)), file_format=form)
    export(output, Store(str(folder / "ragged")), layout="one")
    codes = read_latents(output.url, columns=["image_id"])
    vectors: dict[str, dict[str, np.ndarray]] = {"latent": {}, "embedding": {}}
    for rows, values in codes.batches():
        for name, latent, embedding in zip(rows["image_id"].to_pylist(), values, mean(values), strict=True):
            vectors["latent"][name], vectors["embedding"][name] = latent.ravel(), embedding
    stored = pa.concat_tables(codes.state.tables(["image_id", "latent"])).to_pylist()
    symbols = {row["image_id"]: np.asarray(row["latent"], np.uint8) for row in stored}
    return Example(folder, Path(f"{output.url}/results"), vectors, symbols)


def verdict(read: Read, parts: Path, free: Path, column: str, expected: dict[str, np.ndarray]) -> str:
    """Return whether a tool read each value of a folder correctly."""
    free.mkdir(parents=True, exist_ok=True)
    try:
        ids, values = read(parts, free, column)
    except Exception as e:  # noqa: BLE001 - the table shows any error of a tool
        return f"no: {type(e).__name__}"
    if sorted(ids) != sorted(expected):
        return "no: other rows"
    right = all(np.array_equal(value, expected[name]) for name, value in zip(ids, values, strict=True))
    return "yes" if right else "no: other values"


def of_several(read: Read, form: str, made: Example, free: Path) -> str:
    """Return what a tool reads from an export with several shapes, all parts at once."""
    parts = made.folder / form / "latents"
    found = {column: verdict(read, parts, free / column, column, made.vectors[column]) for column in made.vectors}
    return found["latent"] if "yes" not in found.values() or found["latent"] == "yes" else "all but `latent`"


def found(folder: Path) -> str:
    """Return the table of tools and verdicts. Ray must be connected."""
    one, several = example(folder / "one", 1), example(folder / "several", 3)
    lines = [
        "| tool | export, one shape | several shapes | `--layout one` | `results/` | how |",
        "|---|---|---|---|---|---|",
    ]
    readers = {name: ("parquet", *reader) for name, reader in READERS.items()}
    for name, (form, read, how) in (readers | FORMATS).items():
        free = folder / "free" / name
        exported = verdict(read, one.folder / form / "latents", free / "one", "latent", one.vectors["latent"])
        shapes = of_several(read, form, several, free / "several")
        ragged = of_several(read, "ragged", several, free / "ragged") if name in READERS else "–"
        committed = verdict(read, one.results, free / "results", "latent", one.symbols) if name in READERS else "–"
        lines.append(f"| {name} | {exported} | {shapes} | {ragged} | {committed} | {how} |")
    return "\n".join(lines) + "\n"


def in_page() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    from imagemill.pipeline.cluster.connection import connected

    with tempfile.TemporaryDirectory() as folder, connected(None, num_cpus=2):
        table = found(Path(folder))
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])
    print(table)


if __name__ == "__main__":
    main()
