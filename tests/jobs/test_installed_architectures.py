"""Installed packages register architectures as entry points, which configs and cards then name like bundled ones."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures.lookup import find_architecture
from imagemill.models.errors import CheckpointError

MODULE = '''
"""A denoiser of another package."""

from imagemill.models.architectures.unet import UNet


class Mine(UNet):
    def __init__(self, width):
        super().__init__(widths=[width, width], blocks=1)
'''
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs the package other-package with the given entry points."""
    site = tmp_path / "site"
    info = site / "other_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (site / "other_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(site))
    yield lambda points: (info / "entry_points.txt").write_text(f"[imagemill.architectures]\n{points}\n") and None
    sys.modules.pop("other_nets", None)


def test_registered_architecture_runs(install: Install, imagemill, photos: Path, tmp_path: Path) -> None:
    install("mine = other_nets:Mine")
    torch.manual_seed(0)
    card = {"name": "mine", "task": "denoise", "architecture": "mine", "parameters": {"width": 8}}
    checkpoints.save(str(tmp_path / "mine"), find_architecture("mine")(width=8), card)
    code, out, err = imagemill("models")
    assert (code, err) == (0, "")
    assert "A denoiser of another package." in out
    install("mine = other_nets:Mine\nbroken = nowhere:Net")
    assert "nowhere:Net of other-package cannot be imported" in imagemill("models")[1]
    code, out, err = imagemill("denoise", photos, tmp_path / "out", "--checkpoint", tmp_path / "mine")
    assert code == 0, err
    assert len(list((tmp_path / "out/images").rglob("*.png"))) == 3


def test_registered_architecture_can_be_trained(install: Install, tiny) -> None:
    from imagemill.jobs.training.checks import build_trainable_model

    install("mine = other_nets:Mine")
    model = build_trainable_model(tiny("denoise", architecture="mine", parameters={"width": 8}))
    assert type(model).__name__ == "Mine"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("unet = other_nets:Mine", "registered by imagemill, other-package"),
        ("unet = nowhere:Net", "registered by imagemill, other-package"),
        ("mine = other_nets:MODULE", "cannot be imported"),
        ("mine = pathlib:Path", "is not a subclass"),
        ("other = other_nets:Mine", "unknown. Valid: .*other"),
    ],
)
def test_unusable_registration_is_refused(points: str, message: str, install: Install) -> None:
    install(points)
    with pytest.raises(CheckpointError, match=message):
        find_architecture("unet" if points.startswith("unet") else "mine")
