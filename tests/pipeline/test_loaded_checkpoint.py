"""Checkpoints in a notebook: arrays and PIL images of any size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagemill.jobs.decode import decode_output
from imagemill.models import checkpoint
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.loaded_checkpoint import LoadedCheckpoint
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.sample_images import scene

SIZES = [(1, 1), (3, 500), (37, 53)]
SHAPES = [*SIZES, *((*size, planes) for size in SIZES for planes in (3, 4))]
PARAMS = {
    "inpaint": {"missing": "random", "share": 0.3},
    "stylize": {"style": np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)},
}
MODES = {2: "L", 3: "RGB", 4: "RGBA"}


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def compress() -> LoadedCheckpoint:
    return LoadedCheckpoint.load("compress-small")


@pytest.mark.parametrize("name", checkpoint.bundled_names())
def test_loaded_checkpoint_keeps_kind_and_size(name):
    """Arrays and PIL images (gray, RGB, RGBA) of odd sizes keep their type and mode."""
    loaded = LoadedCheckpoint.load(name)
    params = PARAMS.get(loaded.card.task, {})
    for shape in SHAPES:
        array = pixels(*shape)
        original = array.copy()
        result = loaded(array, **params)
        adds_colours = loaded.card.task in ("colorize", "stylize")
        size = tuple(side * loaded.scale for side in shape[:2])
        expected = size + (shape[2:] or ((3,) if adds_colours else ()))
        assert (result.shape, result.dtype) == (expected, np.uint8)
        assert np.array_equal(array, original)
        image = loaded(Image.fromarray(array), **params)
        assert image.mode == MODES[len(expected) if len(expected) == 2 else expected[2]]
        assert np.array_equal(np.asarray(image), result)


@pytest.mark.parametrize("size", SIZES)
def test_encode_returns_symbols_and_size(compress, size):
    latent = compress.encode(pixels(*size, 3), step=40)
    height, width = size
    assert latent.values.shape == (96, -(-height // 8), -(-width // 8))
    assert (latent.values.dtype, latent.height, latent.width, latent.step) == (np.int8, height, width, 40)
    assert compress.decode(latent).shape == (height, width, 3)


def test_call_of_compress_is_decode_of_encode(compress):
    array = pixels(37, 53, 3)
    assert np.array_equal(compress(array, step=40), compress.decode(compress.encode(array, step=40)))


def test_loaded_checkpoints_equal_a_run(tmp_path: Path, compress):
    """Decoded latents equal `imagemill decode`; `denoise` equals a run, in gray and RGBA too.

    The padded sizes differ, so that the run makes no batch of several images: a batch may round differently.
    """
    rgb = scene(90, 131)
    rgba = np.dstack([rgb, np.indices(rgb.shape[:2])[1].clip(0, 255).astype(np.uint8)])
    images = {
        "gray.png": rgb[:60, :, 0],
        "rgb.png": rgb,
        "rgba.png": rgba[:75],
        "strip.png": rgb[:3],
        "dot.png": rgb[:1, :1],
    }
    (tmp_path / "in").mkdir()
    for name, array in images.items():
        Image.fromarray(array).save(tmp_path / "in" / name)
    for task, params in (("compress", {"step": 30}), ("denoise", {"sigma": 20})):
        run(RunConfig(task=task, input=str(tmp_path / "in"), output=str(tmp_path / task), params=params))
    decode_output(Store(str(tmp_path / "compress")), Store(str(tmp_path / "decoded")))
    denoise = LoadedCheckpoint.load("denoise-small")
    for name, array in images.items():
        expected = np.asarray(Image.open(tmp_path / "decoded" / name).convert("RGB"))
        assert np.array_equal(compress.decode(compress.encode(array, step=30)), expected), name
        assert np.array_equal(denoise(array, sigma=20), np.asarray(Image.open(tmp_path / "denoise/images" / name))), name


def test_inpaint_fills_what_the_mask_marks():
    loaded, array = LoadedCheckpoint.load("inpaint-small"), pixels(40, 60, 3)
    mask = np.zeros((40, 60), bool)
    mask[10:20, 10:20] = True
    result = loaded(array, mask=mask)
    assert np.array_equal(result[~mask], array[~mask])
    assert not np.array_equal(result[mask], array[mask])
    assert np.array_equal(loaded(array, mask=Image.fromarray(mask)), result)
    transparent = np.dstack([array, np.where(mask, 0, 255).astype(np.uint8)])
    assert loaded(transparent, missing="alpha").shape == array.shape


@pytest.mark.parametrize(
    ("name", "args", "params", "error", "message"),
    [
        ("denoise-small", [pixels(4, 4, 3).astype(float)], {}, ValueError, "image: dtype float64, but must be uint8"),
        ("denoise-small", [pixels(4, 4, 2)], {}, ValueError, r"image: shape \(4, 4, 2\), but must be \(H,W\)"),
        ("denoise-small", [pixels(0, 4, 3)], {}, ValueError, "with at least one pixel"),
        ("denoise-small", [Image.new("I;16", (4, 4))], {}, ValueError, "image: PIL mode I;16 has more than 8 bits"),
        ("denoise-small", [pixels(4, 4, 3)], {"sigma": 300}, ConfigError, "sigma"),
        ("denoise-small", [pixels(4, 4, 3)], {"step": 26}, ConfigError, "step"),
        ("denoise-small", [pixels(4, 4, 3)], {"style": "a.png"}, ConfigError, "style: the task denoise uses no style"),
        ("denoise-small", [pixels(4, 4, 3)], {"mask": pixels(4, 4)}, ValueError, "mask: denoise uses a mask only with"),
        ("inpaint-small", [pixels(4, 4, 3)], {}, ValueError, "mask: missing. Pass mask="),
        ("inpaint-small", [pixels(4, 4, 3)], {"mask": pixels(4, 5)}, ValueError, r"mask: uint8 of shape \(4, 5\)"),
        ("inpaint-small", [pixels(4, 4, 3)], {"mask": np.ones((4, 4), bool)}, ValueError, "image: "),
        ("stylize-small", [pixels(4, 4, 3)], {}, ConfigError, "style"),
        ("stylize-small", [pixels(4, 4, 3)], {"style": pixels(4, 4, 3)}, ConfigError, r"style\[0\]: 4×4 pixels, but each"),
        ("stylize-small", [pixels(4, 4, 3)], {"style": "nowhere.png"}, ConfigError, r"style\[0\]"),
    ],
)
def test_loaded_checkpoint_names_what_is_wrong(name, args, params, error, message):
    with pytest.raises(error, match=message):
        LoadedCheckpoint.load(name)(*args, **params)


def test_loaded_checkpoint_refuses_wrong_latents(compress):
    latent = compress.encode(pixels(37, 53, 3))
    with pytest.raises(ValueError, match=r"needs int8 of shape \(96, 5, 8\) for 60×37 pixels"):
        compress.decode(replace(latent, width=60))
    with pytest.raises(CheckpointError, match="encode needs a checkpoint of the task compress"):
        LoadedCheckpoint.load("denoise-small").encode(pixels(4, 4, 3))
    with pytest.raises(CheckpointError, match="'nowhere'"):
        LoadedCheckpoint.load("nowhere")
