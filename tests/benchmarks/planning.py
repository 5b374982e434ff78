"""Measure the cost of a plan: listing files, and subtracting committed rows.

Run: python tests/benchmarks/planning.py [--files 100000] [--committed 10000000] [--rows-per-part 100000]

Makes files and synthetic parts in a temporary folder, then plans in a new process for each figure.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from imagemill.pipeline.output.committed_rows import read_newest_rows
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.plan import make_plan
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.folder import list_folder
from imagemill.pipeline.storage import Store

SHA = "c" * 64
URI = "s3://a-bucket-of-photos/uploads/2026/0.jpg"


def peak_mb() -> float:
    """Return the peak memory of this process since its program started; ru_maxrss includes its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measured(folder: str, what: str) -> None:
    """Measure one figure in this process and print JSON."""
    source, output = Store(f"{folder}/in"), Store(f"{folder}/{what}")
    began = time.monotonic()
    if what == "listing":
        count = sum(1 for _ in source.entries())
    else:
        count = len(make_plan(list_folder(source), source, output, SHA, {}).todo)
    print(json.dumps({"count": count, "seconds": time.monotonic() - began, "peak_mb": peak_mb()}))


def joined(folder: str) -> None:
    """Subtract committed rows from as many images, without listing files."""
    output = Store(f"{folder}/committed")
    ids = pa.concat_arrays(
        [pa.array(chunk) for chunk in np.load(f"{folder}/ids.npy", mmap_mode="r").reshape(100, -1).astype(str)]
    )
    versions, names = pa.repeat("v" * 32, len(ids)), pa.repeat("0.jpg", len(ids))
    inputs = pa.table({"image_id": ids, "version": versions, "source_uri": pa.repeat(URI, len(ids)), "rel_path": names})
    loaded = time.monotonic()
    newest = read_newest_rows(output, [e.path for e in output.entries("results")], inputs)
    print(
        json.dumps(
            {
                "count": int(newest.has_row.sum()),
                "seconds": time.monotonic() - loaded,
                "peak_mb": peak_mb(),
            }
        )
    )


def main(
    files: int = 100_000,
    committed: int = 10_000_000,
    rows_per_part: int = 100_000,
    one: Annotated[str, typer.Option(help="used by the script itself: folder,figure")] = "",
) -> None:
    if one:
        folder, _, what = one.partition(",")
        (joined(folder) if what == "joined" else measured(folder, what))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            path = Path(f"{folder}/in/{number % 100:02d}/{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        names = [f"{number % 100:02d}/{number}.jpg" for number in range(files)]
        rng = np.random.default_rng(0)
        known = [image_id(name) for name in names]
        out, everything = Store(f"{folder}/committed"), []
        for start in range(0, committed, rows_per_part):
            raw = rng.bytes(16 * rows_per_part).hex()
            ids = [raw[n * 32 : n * 32 + 32] for n in range(rows_per_part)]
            # Every listed image has a row of another version.
            take = known[start : start + rows_per_part]
            ids[: len(take)] = take
            everything += ids
            table = pa.table(
                {
                    "image_id": ids,
                    "version": ["v" * 32] * len(ids),
                    "fence": pa.array([1] * len(ids), pa.int64()),
                    "output_bytes": pa.array([1] * len(ids), pa.int64()),
                    "source_uri": pa.repeat(URI, len(ids)),
                }
            )
            out.write(f"results/part-{start:09d}.parquet", parquet_bytes(table, 1))
        np.save(f"{folder}/ids.npy", np.array(everything, dtype="S32"))
        del everything
        print(f"{'':34}{'images':>12}{'seconds':>10}{'peak MB':>10}")
        for what, title in (
            ("listing", "listing alone"),
            ("nothing", "plan, nothing committed"),
            ("committed", f"plan, {committed:,} rows committed"),
            ("joined", "anti-join of all with all"),
        ):
            command = [sys.executable, __file__, "--one", f"{folder},{what}"]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            seen = json.loads(answer.stdout)
            print(f"{title:34}{seen['count']:>12,}{seen['seconds']:>10.1f}{seen['peak_mb']:>10.0f}")


if __name__ == "__main__":
    typer.run(main)
