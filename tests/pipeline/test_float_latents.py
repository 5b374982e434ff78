"""Float latents of autoencoders of other libraries: equality with the library, storage, damage, and all readers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.pipeline.account import account
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.local_channel import LocalChannel
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, check_model, resolve
from imagemill.pipeline.storage import Store
from imagemill.pipeline.worker import Worker
from tests.support.float_coders import CONFIGS, CONTRACTS, library_latent, write_float_coder
from tests.support.folders import rows
from tests.support.worker_jobs import job_here

SIZES = {"a.png": (64, 48), "b.png": (64, 48), "wide.png": (96, 32), "odd.png": (61, 45)}
"""Width and height. The first two and the last one have one padded size for a multiple of 4."""
MULTIPLES = {name: contract.size_multiple for name, contract in CONTRACTS.items()}


def write_images(folder: Path, crops: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Write images of SIZES; return their pixels (H,W,3) uint8."""
    folder.mkdir()
    images = {}
    for crop, (name, (width, height)) in zip(crops, SIZES.items(), strict=False):
        images[name] = np.asarray(Image.fromarray(crop).resize((width, height)))
        Image.fromarray(images[name]).save(folder / name)
    return images


def compress(tmp_path: Path, **settings: Any) -> Store:
    """Compress tmp_path/in with the code of a worker, in this process, and return the output."""
    keys = {"checkpoint": str(tmp_path / "checkpoint"), "input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    resolved = resolve(RunConfig(task="compress", **keys | settings))
    check_model(resolved)
    with Lease(resolved.output) as lease:
        plan = build_plan(resolved)
        job = job_here(resolved, lease.fencing_token)
        params, lineage = resolved.params.model_dump(exclude_unset=True), job.lineage | {"run_id": "r"}
        job = replace(job, params=params, reconstruct=resolved.config.reconstruct, quality=1.0, lineage=lineage)
        Worker(job, LocalChannel()).process_block(plan.todo)
        summary = account(resolved.output, plan, ["psnr_db"])
    assert (summary.ok, summary.rejected) == (len(plan.todo), 0)
    return resolved.output


def values_of(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(row["latent_values"], np.float32).reshape(row["latent_shape"])


def to_tensor(rgb: np.ndarray, multiple: int = 1) -> torch.Tensor:
    """Return an image as the library takes it, with its edge repeated to a multiple."""
    h, w = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -h % multiple), (0, -w % multiple), (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_latents_equal_those_of_the_library(tmp_path, crops, name, batch_size):
    """Batches and single images give what a direct call of the library gives."""
    module = write_float_coder(tmp_path / "checkpoint", name)
    images = write_images(tmp_path / "in", crops)
    output = compress(tmp_path, pool={"batch_size": batch_size})
    made = {row["rel_path"]: row for row in rows(tmp_path / "out")}
    assert set(made) == set(images)
    for path, rgb in images.items():
        expected = library_latent(module, to_tensor(rgb, MULTIPLES[name]))[0].numpy()
        np.testing.assert_allclose(values_of(made[path]), expected, atol=1e-5, rtol=1e-5)
        assert made[path]["latent"] is None
        assert made[path]["step"] is None
        assert made[path]["latent_dtype"] == "float32"
    assert verify(output).problems == []
    decode_output(output, Store(str(tmp_path / "decoded")))
    for path, rgb in images.items():
        with Image.open(tmp_path / "decoded" / path) as image, torch.inference_mode():
            latent = torch.from_numpy(values_of(made[path]))[None]
            expected = (module.decode(latent).sample[0] / 2 + 0.5).clamp(0, 1) * 255
            h, w = rgb.shape[:2]
            assert image.size == (w, h)
            difference = np.asarray(image, np.float32) - expected.permute(1, 2, 0).numpy()[:h, :w]
        assert np.abs(difference).max() <= 1
