"""`import imagemill` in a program: runs, plans, errors, and the examples of docs/python.md."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagemill

PAGE = Path(__file__).parents[2] / "docs/python.md"


@pytest.fixture
def photos(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(crops[number]).save(tmp_path / f"photos/{number}.png")
    (tmp_path / "photos/z_broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "photos"


def test_run_counts_new_and_earlier_images(photos: Path, tmp_path: Path) -> None:
    plan = imagemill.plan("denoise", input=photos, output=tmp_path / "out", sigma=25)
    assert (plan.found, plan.planned, plan.done_before) == (5, 5, 0)
    assert sorted(plan.paths) == sorted(path.name for path in photos.iterdir())
    first = imagemill.run("denoise", input=photos, output=tmp_path / "out", sigma=25, limit=2)
    second = imagemill.run("denoise", input=photos, output=tmp_path / "out", sigma=25)
    assert first.planned == 2
    assert (second.found, second.done_before) == (5, first.ok)
    assert first.ok + second.ok == 4
    assert first.rejected + second.rejected == 1
    assert first.quality["sigma"] == 25
    assert (tmp_path / "out" / str(second.report)).exists()
    assert second.record["exit_code"] == 0
    repeat_plan = imagemill.plan("denoise", input=photos, output=tmp_path / "out", sigma=25)
    assert (repeat_plan.planned, repeat_plan.rejects_waiting) == (0, 1)


def test_run_raises_documented_errors(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        imagemill.ConfigError, match=r"unknown key 'params\.sigmma' \(did you mean sigma\?\); valid: ensemble, sigma"
    ):
        imagemill.run("denoise", input=photos, output=tmp_path / "out", sigmma=25)
    with pytest.raises(imagemill.ConfigError, match=r"task='denoize': unknown\. Valid: colorize"):
        imagemill.plan("denoize", input=photos, output=tmp_path / "out")
    with pytest.raises(imagemill.CheckpointError, match="no-such-model"):
        imagemill.run("denoise", input=photos, output=tmp_path / "out", checkpoint="no-such-model")
    with pytest.raises(imagemill.TooManyRejects, match="1 of 5"):
        imagemill.run("denoise", input=photos, output=tmp_path / "out", max_reject_fraction=0.1)


def test_run_settings_override_the_config(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("task: denoise\nparams: {sigma: 10}\nlimit: 1\n")
    result = imagemill.run("denoise", input=photos, output=tmp_path / "out", config=tmp_path / "job.yaml", sigma=30)
    assert (result.planned, '"sigma": 30' in result.record["parameters"]) == (1, True)


def test_import_is_light_and_quiet() -> None:
    code = "import sys, imagemill; print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("imagemill").handlers)


def test_examples_of_the_python_page_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every Python block of docs/python.md in order, in a folder with photos."""
    monkeypatch.chdir(tmp_path)
    (photos / "z_broken.jpg").unlink()
    Image.open(photos / "0.png").save(photos / "cat.jpg")
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
