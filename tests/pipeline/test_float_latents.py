"""Float latents of autoencoders of other libraries: equality with the library, storage, damage, and all readers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.float_coders import CONFIGS, CONTRACTS, compress_here, library_latent, write_float_coder
from tests.support.folders import rows

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
    output = compress_here(tmp_path, pool={"batch_size": batch_size})
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
