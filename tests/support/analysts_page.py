"""Run the examples of docs/analysis.md and print their output.

python -m tests.support.analysts_page [--write]

creates the outputs of the page from scikit-image's photos, runs its code blocks in order, and prints their output. With
--write it writes the output below each block.
"""

import contextlib
import io
import re
import shlex
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from PIL import Image

from imagemill.jobs.process import call_app
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import image_id, part_name, reject_schema
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed
from tests.support.reading_tools import PAGE

BLOCK = re.compile(r"```(sql|python|sh run)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
PHOTOS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")


def photo(name: str) -> np.ndarray:
    source = files("skimage.data")
    path = next(str(source.joinpath(f"{name}{e}")) for e in (".png", ".jpg") if source.joinpath(f"{name}{e}").is_file())
    return np.asarray(Image.open(path).convert("RGB"))


def lay_out(folder: Path) -> None:
    """Create out/codes (eight photos, two quantiser steps, two days) and out/tiles (crops of 28×28 pixels)."""
    pictures = {name: photo(name) for name in PHOTOS}
    small = {f"{name}.png": rgb[: 8 * (len(rgb) // 16), :320] for name, rgb in pictures.items()}
    compressed(folder / "photos", dict(list(small.items())[:5]), "compress-small", 1, step=26)
    compressed(folder / "photos", dict(list(small.items())[5:]), "compress-small", 2, step=40)
    tiles = {f"{name}/{y:03d}-{x:03d}.png": rgb[y : y + 28, x : x + 28] for name, rgb in pictures.items()
             for y in range(0, 280, 56) for x in range(0, 280, 56)}  # fmt: skip
    second = ("grass", "gravel", "rocket")
    nights = [{n: t for n, t in tiles.items() if (n.split("/")[0] in second) == later} for later in (False, True)]
    for number, night in enumerate(nights):
        compressed(folder / "tiles", night, "conv-mnist", number + 1, rows_per_part=250)
    broken = {"image_id": image_id("broken.png"), "rel_path": "broken.png", "stage": "decode", "error_class": "EmptyFile"}
    rejects = pa.Table.from_pylist([broken | {"error": "EmptyFile: no bytes", "fence": 2}], reject_schema())
    Store(str(folder / "photos/out")).write(f"rejects/{part_name(rejects)}", parquet_bytes(rejects, 3))
    (folder / "out").mkdir()
    for name, outcome in (("photos", "codes"), ("tiles", "tiles")):
        (folder / name / "out").rename(folder / "out" / outcome)


def printed(kind: str, text: str, names: dict[str, Any]) -> str:
    """Return what a block prints when it runs in the current folder."""
    if kind == "sql":
        return f"{duckdb.sql(text)}\n"
    if kind == "python":
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(text, names)
        return out.getvalue()
    out, err = io.StringIO(), io.StringIO()
    for line in text.splitlines():
        sys.argv = shlex.split(line, comments=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            call_app()
    return out.getvalue() + "".join(f"{line}\n" for line in err.getvalue().splitlines() if line.startswith("imagemill:"))


def run_page(folder: Path) -> str:
    """Return the page with the output of each block; raise what a block raises."""
    lay_out(folder)
    names: dict[str, Any] = {}

    def ran(block: re.Match[str]) -> str:
        kind, text = block[1], block[2]
        output = "\n".join(line.rstrip() for line in printed(kind, text, names).replace(f"{folder}/", "").splitlines())
        return f"```{kind}\n{text}```\n" + (f"\n```text\n{output.rstrip()}\n```\n" if output.strip() else "")

    with contextlib.chdir(folder):
        return BLOCK.sub(ran, PAGE.read_text())


def main() -> None:
    arguments = list(sys.argv)
    with tempfile.TemporaryDirectory() as folder:
        page = run_page(Path(folder).resolve())
    if "--write" in arguments:
        PAGE.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
