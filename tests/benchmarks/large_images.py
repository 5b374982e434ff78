"""Measure the memory of a worker for one image of 101 MP (11,600×8,700), or of another width, in a real run.

Run: python tests/benchmarks/large_images.py [--task compress]… [--format jpg]… [--width W]
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.run import run


def make(path: Path, width: int) -> None:
    """Make an enlarged photo in another process, so that its memory does not count."""
    size = width, width * 3 // 4
    code = (
        "import sys, skimage.data; from PIL import Image; "
        f"Image.fromarray(skimage.data.astronaut()).resize({size}, Image.Resampling.BICUBIC).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def main(
    task: Annotated[list[str] | None, typer.Option()] = None,
    format: Annotated[list[str] | None, typer.Option()] = None,
    width: int = 11_600,
) -> None:
    print(f"{'task':>10}{'format':>8}{'file MB':>9}{'actor MB':>10}{'idle MB':>9}{'seconds':>9}", flush=True)
    for kind in format or ["jpg", "png", "tif"]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in" / f"large.{kind}"
            source.parent.mkdir()
            make(source, width)
            for name in task or ["compress", "denoise"]:
                record = run(
                    RunConfig(
                        task=name,
                        input=str(source.parent),
                        output=f"{folder}/{name}",
                        max_pixels=120_000_000,
                        compression_level=3,
                    )
                )
                peak, seconds = record["peak_rss_mb"], record["seconds"]["run"]
                size = source.stat().st_size / 1e6
                print(
                    f"{name:>10}{kind:>8}{size:>9.0f}{peak['actor']:>10}{peak['idle_actor']:>9}{seconds:>9.0f}", flush=True
                )


if __name__ == "__main__":
    typer.run(main)
