"""Measure the size of latents in Parquet, by encoding and zstd level.

Run: python tests/benchmarks/latent_encoding.py OUTPUT
"""

import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.schema import LATENT_ZERO_POINT
from imagemill.pipeline.storage import Store


def entropy_bits(latents: list[np.ndarray]) -> float:
    """Return the bits of all symbols with one static distribution per channel."""
    bits = 0.0
    for channel in zip(*latents, strict=True):
        _, counts = np.unique(np.concatenate([c.ravel() for c in channel]), return_counts=True)
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits


def encoded(latents: list[np.ndarray], kind: str, level: int) -> tuple[int, float]:
    """Return the bytes of a file with one column, and the seconds to write it."""
    values = [
        v.ravel() if "uint8" in kind else (v.ravel().astype(np.int16) - LATENT_ZERO_POINT).astype(np.int8) for v in latents
    ]
    column = pa.array(values, pa.list_(pa.uint8() if "uint8" in kind else pa.int8()))
    encoding = {"latent.list.element": "BYTE_STREAM_SPLIT"} if "split" in kind else None
    out, began = pa.BufferOutputStream(), time.perf_counter()
    pq.write_table(
        pa.table({"latent": column}), out, compression="zstd", compression_level=level, column_encoding=encoding,
        use_dictionary="dictionary" in kind, write_statistics=False, data_page_size=65536,
    )  # fmt: skip
    return out.getvalue().size, time.perf_counter() - began


def main() -> None:
    output = Store(sys.argv[1])
    names = ["latent", "latent_shape", "orig_width", "orig_height"]
    table = read_parts(output, list_parts(output, "results"), names)
    latents = [np.asarray(v.values).reshape(s.as_py()) for v, s in zip(table["latent"], table["latent_shape"], strict=True)]
    pixels = sum(w.as_py() * h.as_py() for w, h in zip(table["orig_width"], table["orig_height"], strict=True))
    bits = entropy_bits(latents)
    print(f"{len(latents)} images, static entropy {bits / pixels:.3f} bits/pixel")
    for kind in ("int8, plain", "int8, dictionary", "uint8, plain", "uint8, byte stream split"):
        for level in (3, 9, 15, 17, 19):
            size, seconds = encoded(latents, kind, level)
            figures = f"{size * 8 / pixels:.3f} bits/pixel  {size * 8 / bits:.2f} × entropy"
            print(f"{kind:25} zstd {level:2}  {figures}  {seconds * 1000 / len(latents):.1f} ms/image")


if __name__ == "__main__":
    main()
