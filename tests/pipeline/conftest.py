"""What tests of the pipeline share: a photograph, and a user to whom rights of files apply."""

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
    """(H,W,3) uint8 of a real photograph."""
    image = Image.open(str(files("skimage.data").joinpath("coffee.png"))).convert("RGB")
    return np.asarray(image.crop((150, 80, 150 + W, 80 + H)))


@pytest.fixture
def user() -> Iterator[Path]:
    """A folder of this process's user, to whom modes of files apply: another one for the time where that is root."""
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
