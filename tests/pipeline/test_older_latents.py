"""Latents that an older version of imagemill wrote, in tests/pipeline/data/older_latents.

The parts come from commit bb933d16: `imagemill compress IMAGES OUTPUT --checkpoint conv-mnist --coding CODING`, of the three
images there with the modification time MODIFIED.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.models import checkpoint as checkpoints
from imagemill.models.metrics import psnr_db
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.folders import rows

DATA = Path(__file__).parent / "data/older_latents"
MODIFIED = 1_767_225_600


@pytest.fixture(params=["plain", "coded"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    """Return the config of a run whose output an older version has written."""
    (tmp_path / "in").mkdir()
    for path in DATA.glob("*.png"):
        shutil.copy(path, tmp_path / "in")
        os.utime(tmp_path / "in" / path.name, (MODIFIED, MODIFIED))
    shutil.copytree(DATA / request.param, tmp_path / "out/results")
    store_checkpoint(Store(str(tmp_path / "out")), *checkpoints.read("conv-mnist"))
    return RunConfig(
        task="compress",
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        checkpoint="conv-mnist",
        params={"coding": request.param},
        allow_new_input=True,
    )


def test_older_latents_are_intact_and_decode(config: RunConfig, tmp_path: Path) -> None:
    verification = verify(Store(config.output))
    assert (verification.problems, verification.latents) == ([], 3)
    decode_output(Store(config.output), Store(str(tmp_path / "decoded")))
    for path in DATA.glob("*.png"):
        original, decoded = (np.asarray(Image.open(p).convert("RGB")) for p in (path, tmp_path / "decoded" / path.name))
        [stored] = [row["psnr_db"] for row in rows(Path(config.output)) if row["rel_path"] == path.name]
        assert psnr_db(decoded, original) == pytest.approx(stored, abs=0.01)


def test_run_over_older_latents_resumes(config: RunConfig) -> None:
    assert run(config)["done_before"] == 3
    (Path(config.input) / "3.png").write_bytes((DATA / "2.png").read_bytes())
    assert run(config)["ok"] == 1
    verification = verify(Store(config.output))
    assert (verification.problems, verification.latents) == ([], 4)
    first, *_, last = sorted(rows(Path(config.output)), key=lambda row: row["rel_path"])
    assert set(first) == set(last)
