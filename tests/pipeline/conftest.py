"""Fixtures of the pipeline tests: a photo, and a user without root's rights."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import H, W

NOBODY = 65534


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Return a real photo, (H,W,3) uint8."""
    image = Image.open(str(files("skimage.data").joinpath("coffee.png"))).convert("RGB")
    return np.asarray(image.crop((150, 80, 150 + W, 80 + H)))


@pytest.fixture
def user() -> Iterator[Path]:
    """Yield a folder whose owner is subject to file modes.

    Root is not, so a test that runs as root becomes another user until it ends.
    """
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    if root:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for inner in folder.iterdir():
            inner.chmod(0o700)
        shutil.rmtree(folder)
