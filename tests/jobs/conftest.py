"""Fixtures: run a command in the test process, and build configs of small trainings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagemill.jobs import process
from imagemill.jobs.train import TrainConfig
from tests.support.outputs import COUNT
from tests.support.tiny_models import TINY


@pytest.fixture
def clean(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return a folder of 48 photos, one broken file and one small image."""
    folder = tmp_path / "clean"
    folder.mkdir()
    for number, crop in enumerate(crops):
        Image.fromarray(crop).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"broken")
    Image.fromarray(crops[0][:9, :9]).save(folder / "small.png")
    return folder


@pytest.fixture
def tiny(clean: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return tiny(task, key=value, …), which builds the config of a two-epoch training on `clean`."""

    def config(task: str, **changes: Any) -> TrainConfig:
        base = {"name": f"tiny-{task}", "task": task, "input": [str(clean)], "output": str(tmp_path / "out"), "epochs": 2}
        defaults = {"crop": 32, "crops_per_image": 2, "batch_size": 4, "validation_share": 0.2, "warmup_steps": 2}
        architecture, parameters = TINY[task]
        network = {"architecture": architecture, "parameters": parameters}
        return TrainConfig.model_validate({**base, **defaults, **network, **changes})

    return config


@pytest.fixture
def photos(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, crop in enumerate(crops[:3]):
        Image.fromarray(crop).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def imagemill(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Return a function that runs a command in this process and returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["imagemill", *map(str, arguments)])
        code = process.run_command()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture(scope="module")
def pieces(crops: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return photo crops of the size of a digit image, by name."""
    return {f"{number}.png": crop[20:48, 30:58] for number, crop in enumerate(crops[:COUNT])}
