"""Encode photos with a VAE of Stable Diffusion's shape, next to a loop over diffusers, and kill the run twice.

Run: python tests/benchmarks/vae.py [--images 2000] [--width 8]

The VAE has random weights and four levels of WIDTH, 2·WIDTH, 4·WIDTH and 4·WIDTH channels; Stable Diffusion's has a WIDTH of
128. Photos have 512 px. All figures are of one run of this script.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import photos
import pyarrow.dataset as ds
import torch
import typer
from PIL import Image
from process_tree import processes, pss_mb, watched
from rich.console import Console
from rich.table import Table

SIDE = 512
HERE = Path(__file__).parent
KILLED_AT = (0.3, 0.6)
"""Shares of the images after which the driver of a run is killed."""
LOOK_SECONDS = 1.0
TIMEOUT_SECONDS = 3600.0


def make_photos(folder: Path, count: int) -> None:
    """Write crops of scikit-image's photos."""
    folder.mkdir()
    opened = [Image.open(path).convert("RGB") for path in photos.sources(None)]
    for number in range(count):
        rng = np.random.default_rng(number)
        crop = photos.cut(opened[number % len(opened)], number, (SIDE, SIDE), rng)
        crop.save(folder / f"{number:05d}.jpg", quality=photos.QUALITY)


def make_vae(folder: Path, width: int) -> None:
    """Write a diffusers folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=min(32, width),
        sample_size=SIDE,
    )
    vae.save_pretrained(folder)


def imagemill(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "imagemill", *map(str, arguments)]


def committed(output: Path) -> int:
    """Return the number of committed rows."""
    parts = list((output / "results").glob("*.parquet"))
    return int(ds.dataset([str(part) for part in parts]).count_rows()) if parts else 0


def memory_of(root: int) -> float:
    """Return the proportional memory of a process and its descendants, in MB."""
    parents = {pid: parent for pid, (parent, _, _) in processes().items()}
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(map(pss_mb, family))


def run_with_kills(command: list[str], output: Path, images: int, log: Path) -> list[list[float]]:
    """Run a command, and kill its driver at some shares of committed images. Return the memory over time of each start."""
    samples = []
    for share in (*KILLED_AT, None):
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        used: list[float] = []
        while process.poll() is None:
            if share is not None and committed(output) >= share * images:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                break
            used.append(memory_of(process.pid))
            time.sleep(LOOK_SECONDS)
        samples.append(used)
    if process.returncode:
        raise SystemExit(f"the last run ended with {process.returncode}: {log.read_text()[-2000:]}")
    return samples


def main(
    images: Annotated[int, typer.Option(help="number of photos", min=10)] = 2000,
    width: Annotated[int, typer.Option(help="channels of the first level", min=8)] = 8,
) -> None:
    """Print the tables."""
    table = Table(title=f"{images:,} photos of {SIDE} px, a VAE of width {width}, {os.cpu_count()} cores")
    for name in ("", "images/s", "wall s", "CPU s", "peak MB"):
        table.add_column(name, justify="right" if name else "left")
    with tempfile.TemporaryDirectory(prefix="imagemill-vae-") as place:
        root = Path(place)
        make_photos(root / "photos", images)
        make_vae(root / "vae", width)
        subprocess.run(imagemill("models", "import", root / "vae", root / "checkpoint"), check=True)
        compress = imagemill(
            "compress", root / "photos", root / "out", "--checkpoint", root / "checkpoint", "--set", "quality=0"
        )
        loop = [sys.executable, str(HERE / "peers/diffusers_loop.py"), str(root / "vae"), str(root / "photos")]
        commands = {"imagemill compress": compress}
        (root / "loop").mkdir()
        commands["diffusers loop"] = [*loop, str(root / "loop"), str(os.cpu_count())]
        for name, command in commands.items():
            usage = watched(command, dict(os.environ), root / "log", root, TIMEOUT_SECONDS)
            if usage.code:
                raise SystemExit(f"{name} ended with {usage.code}: {(root / 'log').read_text()[-2000:]}")
            figures = (images / usage.wall_s, usage.wall_s, usage.cpu_s, usage.peak_pss_mb)
            table.add_row(name, *(f"{figure:,.1f}" for figure in figures))
        Console(width=100).print(table)
        killed = [word.replace(str(root / "out"), str(root / "killed")) for word in compress]
        memory = run_with_kills(killed, root / "killed", images, root / "log")
        for number, used in enumerate(memory, 1):
            first, second = (max(part) for part in np.array_split(used, 2))
            print(f"start {number}: peak {first:,.0f} MB in the first half, {second:,.0f} MB in the second")
        rows = ds.dataset(root / "killed/results").to_table(columns=["image_id"])["image_id"]
        print(f"killed twice: {len(rows):,} rows of {len(rows.unique()):,} images")
        result = subprocess.run(imagemill("verify", root / "killed"), capture_output=True, text=True, check=False)
        print(f"imagemill verify: exit code {result.returncode}")


if __name__ == "__main__":
    typer.run(main)
