"""Images that kill the process which reads them: found, rejected, and nobody else with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from pipeline.account import verify
from pipeline.storage import Store

# Stands in for a decoder with a fatal bug: the marked file ends the process at once, as a segmentation fault does.
FATAL = """
import os, signal
import PIL.Image as image
opened = image.open
def open(file, *args, **kwargs):
    if b"deadly" in file.getvalue()[:200]:
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(file, *args, **kwargs)
image.open = open
"""


def test_images_that_kill_their_process_are_rejected_and_the_rest_is_done(tmp_path, crops):
    source, output, fatal = tmp_path / "in", tmp_path / "out", tmp_path / "fatal"
    source.mkdir()
    fatal.mkdir()
    (fatal / "sitecustomize.py").write_text(FATAL)
    for number in range(24):
        mark = PngImagePlugin.PngInfo()
        if number in (5, 6):
            mark.add_text("note", "deadly")
        Image.fromarray(crops[number]).save(source / f"{number:02d}.png", pnginfo=mark)
    command = [sys.executable, "-m", "jobs", "denoise", str(source), str(output), "--set", "rows_per_part=12"]
    paths = os.pathsep.join([str(fatal), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rejects = [row for part in (output / "rejects").iterdir() for row in pq.read_table(part).to_pylist()]
    assert {row["rel_path"]: row["error_class"] for row in rejects} == dict.fromkeys(("05.png", "06.png"), "KilledProcess")
    record = json.loads(next((output / "runs").glob("*/run.json")).read_text())
    assert (record["ok"], record["rejected"]) == (22, 2)
    seen = verify(Store(str(output)))
    assert (seen.problems, seen.images, seen.files) == ([], 22, 22)
    assert not Path(output / "images/05.png").exists()
