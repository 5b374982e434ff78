"""Only images that kill the process that decodes them are rejected."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.pipeline.engines.local_engine import LocalChannel
from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from imagemill.pipeline.suspects import MOST_DEATHS, Suspects

# Simulates a decoder with a fatal bug: a marked file kills its process, like a segmentation fault.
FATAL = """
import os, signal
import PIL.Image as image
opened = image.open
def open(file, *args, **kwargs):
    if b"deadly" in file.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(file, *args, **kwargs)
image.open = open
"""


def photos(folder: Path, crops: list[np.ndarray], count: int, deadly: tuple[int, ...]) -> tuple[Path, Path, Path]:
    """Write images, some of them deadly; return the input, the output and the folder of the patch."""
    source, output, fatal = folder / "in", folder / "out", folder / "fatal"
    source.mkdir()
    fatal.mkdir()
    (fatal / "sitecustomize.py").write_text(FATAL)
    for number in range(count):
        mark = b"deadly" if number in deadly else b""
        # The patch changes Pillow, which always decodes WebP; other formats have other decoders.
        Image.fromarray(crops[number]).save(source / f"{number:02d}.webp", lossless=True, xmp=mark)
    return source, output, fatal


def run(source: Path, output: Path, fatal: Path) -> None:
    command = [sys.executable, "-m", "imagemill", "denoise", str(source), str(output)]
    command += ["--set", "rows_per_part=12", "--set", "max_reject_fraction=1"]
    paths = os.pathsep.join([str(fatal), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": paths}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr


def records(output: Path) -> list[dict[str, Any]]:
    """Return the run.json of each run, oldest first."""
    return [json.loads(path.read_text()) for path in sorted((output / "runs").glob("*/run.json"))]


def test_images_that_kill_their_process_are_rejected(tmp_path, crops):
    source, output, fatal = photos(tmp_path, crops, count=24, deadly=(5, 6))
    run(source, output, fatal)
    rejects = [row for part in (output / "rejects").iterdir() for row in pq.read_table(part).to_pylist()]
    assert {row["rel_path"]: row["error_class"] for row in rejects} == dict.fromkeys(("05.webp", "06.webp"), "KilledProcess")
    assert all(row["transient"] for row in rejects)
    record = records(output)[-1]
    assert (record["ok"], record["rejected"]) == (22, 2)
    verification = verify(Store(str(output)))
    assert (verification.problems, verification.images, verification.files) == ([], 22, 22)
    assert not Path(output / "images/05.webp").exists()


def test_block_with_repeated_deaths_ends_the_run():
    """Engines retry a block MOST_DEATHS times; the last attempt ends the run with an explanation."""
    channel = LocalChannel()
    for _ in range(MOST_DEATHS):
        Suspects(channel, "deaths", ["a"])
    with pytest.raises(RunFailed, match="enough memory for its workers"):
        Suspects(channel, "deaths", ["a"])


@pytest.mark.chaos
def test_image_that_always_kills_is_tried_by_three_runs(tmp_path, crops):
    source, output, fatal = photos(tmp_path, crops, count=2, deadly=(1,))
    for _ in range(4):
        run(source, output, fatal)
    assert [record["planned"] for record in records(output)] == [2, 1, 1, 0]
    assert records(output)[-1]["rejects_waiting"] == 1
