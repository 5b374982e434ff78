"""Measure how cost grows: images per second and memory by number of images and workers, and blocks per second.

Run: python tests/benchmarks/scaling.py [--images 1000,10000,100000]

The images have 16 px, so that the work around the model dominates. Every run is a separate process with an empty output, by
`imagemill compress` without quality figures; the printed figures are those of its run.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from imagemill.pipeline.images.encode import encode_rgb

SIDE = 16
BLOCKS = 2_000
ROWS = 250
"""Images of a block by default."""


def fill(folder: Path, images: int) -> None:
    """Write `count` small files, a thousand per folder."""
    rng = np.random.default_rng(0)
    files = [encode_rgb(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8), "PNG") for _ in range(100)]
    for number in range(images):
        path = folder / f"{number // 1000}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[number % 100])


def run(source: Path, output: Path, *settings: str) -> dict[str, Any]:
    """Return the run.json of a run."""
    command = [sys.executable, "-m", "imagemill", "compress", str(source), str(output)]
    command += [word for setting in ("quality=0", *settings) for word in ("--set", setting)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    record: dict[str, Any] = json.loads(next(output.glob("runs/*/run.json")).read_text())
    return record


def main(images: Annotated[str, typer.Option(help="counts, with commas between")] = "1000,10000,100000") -> None:
    """Print the tables."""
    counts = sorted(map(int, images.split(",")))
    table = Table(title=f"images of {SIDE} px, compress")
    for name in ("images", "actors", "images/s", "plan s", "account s", "total s", "driver MB", "actor MB"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory(prefix="imagemill-scaling-") as place:
        root = Path(place)
        fill(root / "all", counts[-1])
        for number, (count, actors) in enumerate([*((count, 2) for count in counts), (counts[len(counts) // 2], 1)]):
            record = run(root / "all", root / f"out{number}", f"limit={count}", f"pool.workers={actors}")
            seconds, memory = record["seconds"], record["peak_rss_mb"]
            table.add_row(
                f"{count:,}",
                str(actors),
                f"{record['images_per_s']:,.0f}",
                *(f"{seconds[name]:.2f}" for name in ("plan", "account", "total")),
                *(f"{memory[name]:,}" for name in ("driver", "actor")),
            )
        record = run(root / "all", root / "blocks", f"limit={BLOCKS}", "rows_per_part=1", "pool.batch_size=1")
    Console(width=120).print(table)
    rate = record["images_per_s"]
    print(f"{BLOCKS:,} blocks of one image: {rate:,.0f} blocks/s, commits included; of {ROWS} images: {rate * ROWS:,.0f}/s.")


if __name__ == "__main__":
    typer.run(main)
