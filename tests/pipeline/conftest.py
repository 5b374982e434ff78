"""The photograph that tests of pictures share."""

from importlib.resources import files

import numpy as np
import pytest
from pictures import H, W
from PIL import Image


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(H,W,3) uint8 of a real photograph."""
    image = Image.open(str(files("skimage.data").joinpath("coffee.png"))).convert("RGB")
    return np.asarray(image.crop((150, 80, 150 + W, 80 + H)))
