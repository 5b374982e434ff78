"""Which tools read float16 lists of Parquet, and how large float latents are by type and encoding.

Run: python tests/benchmarks/float_encoding.py OUTPUT

OUTPUT holds float latents. The tools are those of docs/analysis.md, without FAISS, which reads no files.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from imagemill.pipeline import read_latents

TYPES = {"float32": pa.float32(), "float16": pa.float16()}
SPLIT = {"column_encoding": {"values.list.element": "BYTE_STREAM_SPLIT"}}


def by_pandas(path: Path) -> list[np.ndarray]:
    import pandas as pd

    return list(pd.read_parquet(path)["values"])


def by_polars(path: Path) -> list[np.ndarray]:
    import polars as pl

    return [values.to_numpy() for values in pl.read_parquet(path)["values"]]


def by_datasets(path: Path) -> list[np.ndarray]:
    from datasets import load_dataset

    rows = load_dataset("parquet", split="train", data_files=str(path), cache_dir=str(path.parent / "cache"))
    return list(rows.with_format("numpy")["values"])


def by_lance(path: Path) -> list[np.ndarray]:
    import lance

    table = lance.write_dataset(ds.dataset(path).scanner(), f"{path}.lance").to_table()
    return [np.asarray(scalar.values) for scalar in table["values"]]


def by_daft(path: Path) -> list[np.ndarray]:
    import daft

    return list(daft.read_parquet(str(path)).to_pydict()["values"])


def by_ray(path: Path) -> list[np.ndarray]:
    import ray.data

    ray.init(num_cpus=1, include_dashboard=False, ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False)
    return [row["values"] for row in ray.data.read_parquet(str(path)).take_all()]


READERS: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "pyarrow": lambda path: [np.asarray(scalar.values) for scalar in pq.read_table(path)["values"]],
    "pandas": by_pandas,
    "polars": by_polars,
    "DuckDB": lambda path: [row[0] for row in duckdb.sql(f"SELECT values FROM '{path}'").fetchall()],
    "datasets": by_datasets,
    "Lance": by_lance,
    "daft": by_daft,
    "Ray Data": by_ray,
}


def column(latents: list[np.ndarray], kind: str) -> pa.Array:
    """Return latents as a column; "rounded" is float32 with the values of float16."""
    if kind == "rounded":
        return pa.array([v.astype(np.float16).astype(np.float32) for v in latents], pa.list_(pa.float32()))
    return pa.array([v.astype(kind) for v in latents], pa.list_(TYPES[kind]))


def verdict(read: Callable[[Path], list[np.ndarray]], path: Path, expected: pa.Array) -> str:
    """Return whether a tool reads each value of a file correctly."""
    try:
        values = read(path)
    except Exception as e:  # noqa: BLE001 - the table shows any error of a tool
        return f"no: {type(e).__name__}"
    pairs = zip(values, expected, strict=True)
    is_right = all(np.array_equal(np.asarray(a, np.float32), np.asarray(b.values).astype(np.float32)) for a, b in pairs)
    return "yes" if is_right else "no: other values"


def main() -> None:
    latents = [v.ravel() for _, batch in read_latents(sys.argv[1], columns=["rel_path"]).batches() for v in batch]
    values = sum(map(len, latents))
    print(f"{len(latents)} images, {values:,} values")
    for kind in ("float32", "rounded", "float16"):
        for name, options in (("plain", {}), ("byte stream split", SPLIT)):
            for level in (3, 9):
                out, began = pa.BufferOutputStream(), time.perf_counter()
                table = pa.table({"values": column(latents, kind)})
                pq.write_table(table, out, compression="zstd", compression_level=level, use_dictionary=False, **options)
                took = (time.perf_counter() - began) * 1000 / len(latents)
                print(f"{kind:8} {name:18} zstd {level}  {out.getvalue().size / values:.2f} bytes/value  {took:.1f} ms")
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            for name, options in (("plain", {}), ("byte stream split", SPLIT)):
                expected = column(latents[:5], kind)
                path = Path(folder, f"{kind}-{name[:4]}", "a.parquet")
                path.parent.mkdir()
                pq.write_table(pa.table({"values": expected}), path, compression="zstd", use_dictionary=False, **options)
                cells = [f"{tool} {verdict(read, path, expected)}" for tool, read in READERS.items()]
                print(f"{kind} {name}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
