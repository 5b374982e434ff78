"""Only images that kill or block the process that works on them are rejected."""

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

from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.engines import ENGINES, RAY_IN_CHAOS

STUCK_COLOUR = (255, 0, 255)
# Simulates fatal bugs: a marked file kills its process like a segmentation fault, blocks its reader (a pipe that no one
# writes), its decoder, or all threads (native code that keeps the GIL); a marked pixel blocks the model.
FATAL = f"""
import ctypes, importlib.util, os, pathlib, signal, sys, threading
import PIL.Image as image

opened, read = image.open, pathlib.Path.read_bytes
def open(file, *args, **kwargs):
    data = file.getvalue()
    if b"deadly" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"endless" in data:
        threading.Event().wait()
    if b"frozen" in data:
        ctypes.PyDLL(None).pause()
    return opened(file, *args, **kwargs)
def read_bytes(path):
    data = read(path)
    return read(pathlib.Path(__file__).with_name("pipe")) if b"blocked" in data else data
image.open, pathlib.Path.read_bytes = open, read_bytes

def change_denoise(module):
    predict = module.Denoise.predict
    def stuck_predict(self, model, samples, *args):
        if any(tuple(sample.rgb[0, 0]) == {STUCK_COLOUR} for sample in samples):
            threading.Event().wait()
        return predict(self, model, samples, *args)
    module.Denoise.predict = stuck_predict
def change_watchdog(module):
    module.GIL_SECONDS = 1
changes = {{
    "imagemill.models.objectives.denoise": change_denoise,
    "imagemill.pipeline.watchdog": change_watchdog,
}}

class Patch:
    # Modules are changed when they are imported, because not every process imports them.
    def find_spec(self, name, path, target=None):
        if (change := changes.pop(name, None)) is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), change(module))
        return spec
sys.meta_path.insert(0, Patch())
"""


def photos(folder: Path, crops: list[np.ndarray], count: int, marks: dict[int, str]) -> tuple[Path, Path, Path]:
    """Write images with some marks; return the input, the output and the folder of the patch."""
    source, output, fatal = folder / "in", folder / "out", folder / "fatal"
    source.mkdir()
    fatal.mkdir()
    (fatal / "sitecustomize.py").write_text(FATAL)
    os.mkfifo(fatal / "pipe")
    for number in range(count):
        crop, mark = crops[number].copy(), marks.get(number, "")
        if mark == "model":
            crop[0, 0] = STUCK_COLOUR
        # The patch changes Pillow, which always decodes WebP; other formats have other decoders.
        Image.fromarray(crop).save(source / f"{number:02d}.webp", lossless=True, xmp=mark.encode())
    return source, output, fatal


def run(source: Path, output: Path, fatal: Path, *settings: str) -> None:
    command = [sys.executable, "-m", "imagemill", "denoise", str(source), str(output)]
    for setting in ("rows_per_part=6", "max_reject_fraction=1", *settings):
        command += ["--set", setting]
    paths = os.pathsep.join([str(fatal), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": paths}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr


def rejects_of(output: Path) -> dict[str, tuple[str, str]]:
    """Return image → stage and class of its reject. All of them must be transient."""
    rows = [row for part in (output / "rejects").iterdir() for row in pq.read_table(part).to_pylist()]
    assert all(row["transient"] for row in rows)
    return {row["rel_path"]: (row["stage"], row["error_class"]) for row in rows}


def check_rest(output: Path, images: int) -> None:
    """Check that all other images are done."""
    assert records(output)[-1]["ok"] == images
    verification = verify(Store(str(output)))
    assert (verification.problems, verification.images, verification.files) == ([], images, images)


def records(output: Path) -> list[dict[str, Any]]:
    """Return the run.json of each run, oldest first."""
    return [json.loads(path.read_text()) for path in sorted((output / "runs").glob("*/run.json"))]


@pytest.mark.parametrize(
    # Each killer ends two processes, and Ray takes seconds to replace one.
    "engine",
    ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])],
)
def test_images_that_kill_their_process_are_rejected(tmp_path, crops, engine):
    source, output, fatal = photos(tmp_path, crops, count=12, marks={2: "deadly", 3: "deadly"})
    run(source, output, fatal, f"engine={engine}")
    assert rejects_of(output) == dict.fromkeys(("02.webp", "03.webp"), ("process", "KilledProcess"))
    check_rest(output, 10)
    assert not Path(output / "images/02.webp").exists()


@pytest.mark.parametrize("engine", RAY_IN_CHAOS)
def test_stuck_images_are_rejected(tmp_path, crops, engine):
    """A read, a decoder and a batch of the model that never return end after their time limit."""
    source, output, fatal = photos(tmp_path, crops, count=6, marks={1: "blocked", 2: "endless", 5: "model"})
    run(source, output, fatal, f"engine={engine}", "pool.workers=1", "pool.batch_size=2", "image_timeout_s=2")
    stages = {"01.webp": "fetch", "02.webp": "decode", "05.webp": "model"}
    assert rejects_of(output) == {name: (stage, "Timeout") for name, stage in stages.items()}
    check_rest(output, 3)


@pytest.mark.parametrize("engine", RAY_IN_CHAOS)
def test_image_that_freezes_its_process_is_rejected(tmp_path, crops, engine):
    """Native code that keeps the GIL stops the watchdog, too; a C thread ends the process."""
    source, output, fatal = photos(tmp_path, crops, count=3, marks={1: "frozen"})
    run(source, output, fatal, f"engine={engine}", "pool.workers=1", "image_timeout_s=2")
    assert rejects_of(output) == {"01.webp": ("process", "Timeout")}
    check_rest(output, 2)


@pytest.mark.chaos
@pytest.mark.parametrize("engine", ENGINES)
def test_image_that_always_kills_is_tried_by_three_runs(tmp_path, crops, engine):
    source, output, fatal = photos(tmp_path, crops, count=2, marks={1: "deadly"})
    for _ in range(4):
        run(source, output, fatal, f"engine={engine}")
    assert [record["planned"] for record in records(output)] == [2, 1, 1, 0]
    assert records(output)[-1]["rejects_waiting"] == 1
