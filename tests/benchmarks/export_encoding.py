"""Compare Parquet encodings of float32 latents: bytes per value (raw float32: 4) and ms per image.

Run: python tests/benchmarks/export_encoding.py EXPORT [EXPORT …]
"""

import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENCODINGS: dict[str, dict[str, Any]] = {
    "plain": {"use_dictionary": False},
    "byte stream split": {"use_dictionary": False, "column_encoding": {"latent.list.element": "BYTE_STREAM_SPLIT"}},
    "dictionary": {"use_dictionary": True},
}


def main() -> None:
    for place in sys.argv[1:]:
        tables = [pq.read_table(path, columns=["latent"]) for path in sorted(Path(place).glob("latents/**/*.parquet"))]
        rows = sum(map(len, tables))
        values = sum(len(table["latent"].combine_chunks().flatten()) for table in tables)
        print(f"{place}: {rows:,} images, {values:,} values")
        for name, how in ENCODINGS.items():
            cells = []
            for level in (1, 3, 9):
                size, began = 0, time.process_time()
                for table in tables:
                    out = pa.BufferOutputStream()
                    pq.write_table(table, out, compression="zstd", compression_level=level, data_page_size=64 * 1024, **how)
                    size += out.getvalue().size
                cells.append(f"zstd {level} {size / values:.2f}, {(time.process_time() - began) * 1e3 / rows:.1f} ms")
            print(f"  {name:20}{'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
