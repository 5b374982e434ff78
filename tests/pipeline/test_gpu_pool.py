"""Runs in a separate process whose Ray reports GPUs; torch may find no CUDA device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.run_processes import made_without_faults, make_photos, outputs

COUNT = 12


def imagemill(*arguments: str, resources: dict[str, float]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process, whose Ray reports `resources`."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["RAY_OVERRIDE_RESOURCES"] = json.dumps(resources)
    command = [sys.executable, "-m", "imagemill", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def record_of(output: Store) -> dict:
    return json.loads(output.read(next(e.path for e in output.entries("runs") if e.path.endswith("run.json"))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the outputs of a GPU are not those of a CPU to the last bit")
@pytest.mark.slow
@pytest.mark.ray
def test_run_on_logical_gpus_equals_a_cpu_run(tmp_path: Path, crops: list[np.ndarray]) -> None:
    """Two workers share a GPU. Without CUDA they compute on CPUs and log it once."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, COUNT, crops)
    arguments = ("denoise", source.url, output.url, "--set", "pool.gpus_per_worker=0.5", "--set", "rows_per_part=2")
    result = imagemill(*arguments, resources={"CPU": 2, "GPU": 1})
    assert result.returncode == 0, result.stderr
    assert "2 workers of 1 CPU and 0.5 of a GPU each; cluster: 2 CPUs and 1 GPU on 1 node" in result.stderr
    assert result.stderr.count("CUDA") == 1, result.stderr
    assert verify(output).problems == []
    record = record_of(output)
    assert (record["ok"], record["rejected"], record["devices"]) == (COUNT, 0, ["cpu"])
    assert outputs(output) == made_without_faults(COUNT, tmp_path, crops)
