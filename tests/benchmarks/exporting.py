"""Measure the cost of an export: rows per second, bytes per value, and memory, for several numbers of rows.

Run: python tests/benchmarks/exporting.py [--rows 100000 --rows 1000000] [--values 256] [--rows-per-part 100000]
     [--format npz]

Makes synthetic parts whose latents have 4 channels, like conv-mnist, and symbols with a spread of 20. Exports each in a new
process. With --ray, also does the same arithmetic as a Ray Data job.
"""

import json
import subprocess
import sys
import tempfile
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from imagemill.models import checkpoint as checkpoints
from imagemill.models.tasks import TASKS
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import LATENT_ZERO_POINT, result_schema
from imagemill.pipeline.storage import Store


def peak_mb() -> float:
    """Return the peak memory of this process since its program started."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def lay_out(output: Store, rows: int, values: int, rows_per_part: int) -> None:
    card, weights = checkpoints.read("conv-mnist")
    store_checkpoint(output, card, weights)
    side = round((values / 4) ** 0.5)
    if 4 * side * side != values:
        raise typer.BadParameter(f"{values} values are no 4 channels of a square")
    schema = result_schema(TASKS["compress"].columns, stores_latent=True)
    rng = np.random.default_rng(0)
    for start in range(0, rows, rows_per_part):
        n = min(rows_per_part, rows - start)
        symbols = np.clip(rng.normal(-60, 20, (n, values)).round(), -128, 127).astype(np.int8)
        stored = symbols.view(np.uint8) ^ np.uint8(LATENT_ZERO_POINT)
        digits = rng.bytes(16 * n).hex()
        columns = {
            "image_id": [digits[k : k + 32] for k in range(0, len(digits), 32)],
            "version": ["v" * 32] * n,
            "rel_path": [f"{start + k:09d}.jpg" for k in range(n)],
            "source_uri": [f"s3://bucket/images/{start + k:09d}.jpg" for k in range(n)],
            "orig_width": [4 * side] * n,
            "orig_height": [4 * side] * n,
            "task": ["compress"] * n,
            "model_id": [card.name] * n,
            "checkpoint_sha256": [card.sha256] * n,
            "run_id": ["20260301T000000Z-000001"] * n,
            "fence": [1] * n,
            "encoded_at": [datetime(2026, 3, 1, tzinfo=UTC)] * n,
            "step": [26.0] * n,
            "psnr_db": rng.normal(30, 3, n).astype(np.float32),
            "latent": pa.ListArray.from_arrays(
                pa.array(np.arange(n + 1, dtype=np.int32) * values), pa.array(stored.ravel())
            ),
            "latent_shape": [[4, side, side]] * n,
            "latent_crc32": [zlib.crc32(row) for row in stored],
        }
        arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema]
        output.write(f"results/part-{start:09d}.parquet", parquet_bytes(pa.table(arrays, schema=schema), 1))


def measured(folder: str, file_format: str) -> None:
    """Export once in this process and print JSON."""
    from imagemill.jobs.export import export

    began = time.monotonic()
    record = export(Store(f"{folder}/out"), Store(f"{folder}/export"), file_format=file_format)
    seen = {"seconds": time.monotonic() - began, "cpu": time.process_time(), "peak_mb": peak_mb()}
    print(json.dumps({"rows": record["rows"], **seen}))


def by_ray(folder: str) -> None:
    """Do the same arithmetic as a Ray Data job on as many cores and print JSON."""
    from imagemill.pipeline.cluster.connection import connected

    with connected(None):
        import ray.data

        from imagemill.pipeline.output.latent_values import dequantise

        width = checkpoints.build(*checkpoints.read("conv-mnist")).dequantisation(26.0)[0].numpy()

        def values(batch: pa.Table) -> pa.Table:
            symbols = (batch["latent"].combine_chunks().flatten().to_numpy() ^ np.uint8(LATENT_ZERO_POINT)).view(np.int8)
            shape = (len(batch), 4, -1, 1)
            floats = dequantise(symbols.reshape(shape), np.tile(width, (len(batch), 1)), np.full(len(batch), -128))
            lists = pa.FixedSizeListArray.from_arrays(pa.array(floats.ravel()), floats[0].size)
            return batch.set_column(batch.schema.get_field_index("latent"), "latent", lists)

        began = time.monotonic()
        data = ray.data.read_parquet(f"{folder}/out/results").drop_columns(["latent_payload"])
        data.map_batches(values, batch_format="pyarrow", batch_size=16_000).write_parquet(
            f"{folder}/by_ray", compression="zstd"
        )
        print(json.dumps({"seconds": time.monotonic() - began}))


def alone(folder: str, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", f"{folder},{what}"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    seen: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return seen


def main(
    rows: Annotated[list[int] | None, typer.Option(help="100,000 and 1,000,000 when absent")] = None,
    values: int = 256,
    rows_per_part: int = 100_000,
    ray: bool = False,
    format_: Annotated[str, typer.Option("--format")] = "parquet",
    one: Annotated[str, typer.Option(help="used by the script itself: folder,what")] = "",
) -> None:
    if one:
        folder, _, what = one.partition(",")
        if what == "ray":
            by_ray(folder)
        else:
            measured(folder, what)
        return
    print(
        f"{'rows':>12}{'seconds':>10}{'CPU s':>10}{'rows/s':>10}{'bytes/value':>13}{'peak MB':>10}{'Ray, seconds':>14}",
        flush=True,
    )
    for count in rows or [100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            lay_out(Store(f"{folder}/out"), count, values, rows_per_part)
            seen = alone(folder, format_)
            files = [path for path in Path(f"{folder}/export").rglob("*") if path.is_file()]
            parts = sum(path.stat().st_size for path in files if path.suffix in (".parquet", ".npz", ".safetensors"))
            ray_s = f"{alone(folder, 'ray')['seconds']:14.1f}" if ray else ""
            rate, size = count / seen["seconds"], parts / count / values
            print(
                f"{count:>12,}{seen['seconds']:>10.1f}{seen['cpu']:>10.1f}{rate:>10,.0f}{size:>13.2f}{seen['peak_mb']:>10,.0f}{ray_s}",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
