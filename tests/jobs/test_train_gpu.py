"""A training on a Ray that has GPUs, where torch finds no CUDA device."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.placement import choose_workers


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_train_on_logical_gpus_uses_gloo(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """NCCL would fail at every start, so the training warns once and uses two workers on CPUs."""
    config = tiny("upscale", epochs=1, workers=2)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(exclude_defaults=True)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 2, "GPU": 2})
    command = [sys.executable, "-m", "imagemill", "train", "-c", str(tmp_path / "train.yaml")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("finds no CUDA device") == 1, result.stderr
    assert "on 2 workers" in result.stderr
    assert (tmp_path / "out/tiny-upscale/card.json").exists()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([(0, 0), (8, 2)], (True, 2, 4.0)),
        ([(4, 1), (64, 0)], (True, 1, 4.0)),
        ([(0, 1), (4, 1)], (True, 1, 4.0)),
        ([(0, 1), (4, 0)], (False, 2, 2.0)),
    ],
)
def test_training_workers_find_a_gpu_with_cpus(nodes, expected, tiny: Callable[..., TrainConfig]) -> None:
    """A head with a GPU and no CPU has no room for a worker, and Ray Train would wait for it without end."""
    assert choose_workers(tiny("upscale", workers=2), nodes) == expected
