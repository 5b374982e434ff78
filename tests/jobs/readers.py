"""Which tools read an export and `results/`, and how: the table of docs/analysts.md.

python tests/jobs/readers.py [--write]

reads an OUTPUT made for it with every tool, compares all values, prints the table, or writes it into the page.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from outputs import compressed
from PIL import Image

from jobs.export import export
from pipeline import read_latents
from pipeline.storage import Store

PAGE = Path(__file__).parents[2] / "docs" / "analysts.md"
BEGIN, END = "<!-- readers: written by python tests/jobs/readers.py --write -->\n", "<!-- /readers -->"
Read = Callable[[Path, Path], tuple[list[str], np.ndarray]]
"""A folder of Parquet and a free one to image_id and numbers (N,n)."""


def arrays(ids: list[str], lists: "list[np.ndarray] | pd.Series") -> tuple[list[str], np.ndarray]:
    return ids, np.stack([np.asarray(values) for values in lists])


def by_pyarrow(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(parts, columns=["image_id", "latent"])
    return table["image_id"].to_pylist(), table["latent"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def by_pandas(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    frame = pd.read_parquet(parts, columns=["image_id", "latent"])
    return arrays(frame["image_id"].tolist(), frame["latent"])


def by_polars(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    frame = pl.read_parquet(f"{parts}/*.parquet", columns=["image_id", "latent"])
    return arrays(frame["image_id"].to_list(), [values.to_numpy() for values in frame["latent"]])


def by_duckdb(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    found = duckdb.sql(f"SELECT image_id, latent FROM '{parts}/*.parquet'").fetchall()
    return arrays([row[0] for row in found], [np.asarray(row[1]) for row in found])


def by_lance(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    import lance

    table = lance.write_dataset(ds.dataset(parts, format="parquet"), f"{free}/of-parquet.lance").to_table()
    return table["image_id"].to_pylist(), table["latent"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def by_faiss(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    import faiss

    ids, values = by_pyarrow(parts, free)
    index = faiss.IndexFlatL2(values.shape[1])
    index.add(np.ascontiguousarray(values, np.float32))
    return ids, index.reconstruct_n(0, index.ntotal)


def by_datasets(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    from datasets import load_dataset

    found = load_dataset("parquet", data_files=f"{parts}/*.parquet", split="train", cache_dir=str(free)).with_format("numpy")
    return arrays([str(i) for i in found["image_id"]], list(found["latent"]))


def by_ray(parts: Path, free: Path) -> tuple[list[str], np.ndarray]:
    import ray.data

    rows = ray.data.read_parquet(str(parts)).select_columns(["image_id", "latent"]).take_all()
    return arrays([row["image_id"] for row in rows], [row["latent"] for row in rows])


READERS: dict[str, tuple[Read, str]] = {
    "DuckDB": (by_duckdb, "`FROM 'latents/*.parquet'`"),
    "FAISS": (by_faiss, "`index.add(…)` of the pyarrow array"),
    "Hugging Face datasets": (by_datasets, '`load_dataset("parquet", data_files=…)`'),
    "Lance": (by_lance, "`lance.write_dataset(ds.dataset(…), …)`; or export `--format lance`"),
    "pandas": (by_pandas, "`pd.read_parquet(…)`"),
    "polars": (by_polars, "`pl.read_parquet(…)`"),
    "pyarrow": (by_pyarrow, "`pq.read_table(…)`"),
    "Ray Data": (by_ray, "`ray.data.read_parquet(…)`"),
}


@dataclass(frozen=True)
class Example:
    """The same latents as an export, as rows of an OUTPUT, and as they are."""

    export: Path
    results: Path
    values: dict[str, np.ndarray]
    """float32 of each image_id."""
    symbols: dict[str, np.ndarray]


def example(folder: Path) -> Example:
    """20 pieces of a photo, 28 pixels each, as a code of 4×7×7."""
    photo = np.asarray(Image.open(str(files("skimage.data").joinpath("chelsea.png"))).convert("RGB"))
    output = compressed(folder, {f"{n}.png": photo[40:68, 12 * n : 12 * n + 28] for n in range(20)})
    export(output, Store(str(folder / "export")))
    codes = read_latents(output.url)
    ids = codes.arrow()["image_id"].to_pylist()
    values = codes.numpy().reshape(len(ids), -1)
    stored = pa.concat_tables(codes.state.tables(["image_id", "latent"])).to_pylist()
    return Example(
        folder / "export/latents",
        Path(f"{output.url}/results"),
        dict(zip(ids, values, strict=True)),
        {row["image_id"]: np.asarray(row["latent"], np.uint8) for row in stored},
    )


def verdict(read: Read, parts: Path, free: Path, expected: dict[str, np.ndarray]) -> str:
    """Whether a tool gave every value of a folder right."""
    free.mkdir(parents=True, exist_ok=True)
    try:
        ids, values = read(parts, free)
    except Exception as e:  # noqa: BLE001 - whatever a tool raises is what the table says
        return f"no: {type(e).__name__}"
    if sorted(ids) != sorted(expected):
        return "no: other rows"
    right = all(np.array_equal(value, expected[name]) for name, value in zip(ids, values, strict=True))
    return "yes" if right else "no: other values"


def found(folder: Path) -> str:
    """The table, of tools and verdicts. Needs Ray, connected."""
    made = example(folder)
    lines = ["| tool | export | `results/` | how |", "|---|---|---|---|"]
    for name, (read, how) in READERS.items():
        tried = partial(verdict, read)
        exported = tried(made.export, folder / f"free/{name}/export", made.values)
        committed = tried(made.results, folder / f"free/{name}/results", made.symbols)
        lines.append(f"| {name} | {exported} | {committed} | {how} |")
    return "\n".join(lines) + "\n"


def in_page() -> str:
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    from pipeline.cluster.connection import connected

    with tempfile.TemporaryDirectory() as folder, connected(None, num_cpus=2):
        table = found(Path(folder))
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])
    print(table)


if __name__ == "__main__":
    main()
