"""Measure the cost of a report. Run: `python tests/benchmarks/report_cost.py [ROWS]`."""

import hashlib
import io
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from imagemill.models.tasks import TASKS
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.reports.report import rewrite_report
from imagemill.pipeline.schema import part_name, result_schema
from imagemill.pipeline.storage import Store

RUN = "20260301T010000Z-abcdef"
ROWS_PER_PART = 250


def photo() -> bytes:
    out = io.BytesIO()
    Image.open(str(files("skimage.data").joinpath("astronaut.png"))).save(out, "JPEG")
    return out.getvalue()


def fill(folder: Path, count: int) -> None:
    """Make an output of `count` denoised images; only one part has real images, the others repeat it."""
    for place in ("in", "out/images", "out/results"):
        (folder / place).mkdir(parents=True)
    data = photo()
    for n in range(ROWS_PER_PART):
        for place in ("in", "out/images"):
            (folder / place / f"{n}.jpg").write_bytes(data)
    schema = result_schema(TASKS["denoise"].columns, False)
    sigma, began = np.random.default_rng(0).gamma(4, 4, count), datetime.now(UTC)
    common = {"content_sha256": hashlib.sha256(data).hexdigest(), "orig_width": 512, "orig_height": 512}
    common |= {"exif_orientation": 1, "output_bytes": len(data), "task": "denoise", "run_id": RUN, "fence": 1}
    for start in range(0, count, ROWS_PER_PART):
        rows = []
        for n in range(start, min(count, start + ROWS_PER_PART)):
            name, key = f"{n % ROWS_PER_PART}.jpg", f"{n:032x}"
            own = {"image_id": key, "version": key, "rel_path": name, "output_uri": f"images/{name}"}
            rows.append({**common, **own, "sigma": sigma[n], "encoded_at": began + timedelta(milliseconds=10 * n)})
        table = pa.Table.from_pylist(rows, schema)
        (folder / "out/results" / part_name(table)).write_bytes(parquet_bytes(table, 3))
    run = folder / "out/runs" / RUN
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"task: denoise\ninput: {folder}/in\noutput: {folder}/out\n")
    (run / "run.json").write_text(
        f'{{"run_id": "{RUN}", "task": "denoise", "planned": {count}, "ok": {count}, "exit_code": 0}}'
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name), count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.monotonic(), time.process_time()
        path = rewrite_report(Store(f"{name}/out"), RUN)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        size = (Path(name) / "out" / path).stat().st_size
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(
            f"{count:,} rows: {wall:.1f} s, {cpu:.1f} CPU-s, {more / 1000:.0f} MB more memory, a page of {size / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
