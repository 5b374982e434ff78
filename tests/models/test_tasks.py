"""Test the contracts of every registered task, architecture and checkpoint."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.batches import to_uint8_batch
from imagemill.models.colour import luma_uint8, rgb_to_chroma
from imagemill.models.latents import decode_latent
from imagemill.models.metrics import psnr_db
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.objectives.colorize import colourfulness
from imagemill.models.objectives.denoise import estimate_noise_level
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.compress import CompressParams
from imagemill.models.tasks.task import Sample
from tests.support.tiny_models import REQUIRED


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(str(files("skimage.data").joinpath("chelsea.png"))).convert("RGB"))[:200, :281]


def load_bundled(name: str):
    card = checkpoint.read_card(name)
    return checkpoint.build(card, checkpoint.read_weights(name, card))


def noisy(rgb: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, rgb.shape)
    return (rgb + noise).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_architecture_output_size_is_scaled_input(name):
    model = ARCHITECTURES[name]()
    x = torch.rand(2, model.example[0], 3 * model.stride, 5 * model.stride)
    assert model(x).shape[2:] == (3 * model.output_stride, 5 * model.output_stride)
    assert model.halo % model.stride == 0


@pytest.mark.parametrize("upsample", ["nearest", "transposed"])
def test_conv_has_1477_parameters(upsample):
    model = ARCHITECTURES["conv"](upsample=upsample)
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if isinstance(m, kinds)]
    assert layers == [160, 580, 592, 145]
    assert model.encode(torch.rand(1, 1, 28, 28)).shape == (1, 4, 7, 7)


@pytest.mark.parametrize("name", checkpoint.bundled_names())
def test_bundled_checkpoint_is_small_and_predicts(name, photo):
    card = checkpoint.read_card(name)
    assert len(checkpoint.read_weights(name, card)) < 6_000_000
    task = TASKS[card.task]
    params = task.Params(**{"compress": {"coding": "coded"}, **REQUIRED}.get(card.task, {}))
    TASK_OBJECTIVES[task.name].check(load_bundled(name), params)
    model = TASK_OBJECTIVES[task.name].prepare(load_bundled(name), params, [photo[:90, :120]], "cpu")
    outputs = TASK_OBJECTIVES[task.name].predict(model, [Sample(photo), Sample(photo[::-1].copy())], params, Precision())
    assert len(outputs) == 2
    for output in outputs:
        size = (model.scale * photo.shape[0], model.scale * photo.shape[1], 3)
        assert output.image is None or (output.image.shape == size and output.image.dtype == np.uint8)
        assert set(output.columns) <= set(task.columns)
        assert (output.latent is not None) == (output.payload is not None) == task.stores_latent


@pytest.mark.parametrize("name", sorted(name for name, task in TASKS.items() if task.default_checkpoint))
def test_default_checkpoint_is_of_its_task(name):
    assert checkpoint.read_card(TASKS[name].default_checkpoint).task == name


def test_denoise_improves_psnr_and_estimates_sigma(photo):
    for sigma in (10, 25, 50):
        grainy = noisy(photo, sigma)
        output = TASK_OBJECTIVES["denoise"].predict(
            load_bundled("denoise-small"), [Sample(grainy)], TASKS["denoise"].Params(), Precision()
        )[0]
        assert psnr_db(output.image, photo) > psnr_db(grainy, photo) + 4
        assert output.columns["sigma"] == pytest.approx(sigma, rel=0.15)


def test_bfloat16_changes_psnr_by_less_than_0_05_db(photo):
    grainy = noisy(photo, 25)
    model = load_bundled("denoise-small")
    psnr_values = [
        psnr_db(TASK_OBJECTIVES["denoise"].predict(model, [Sample(grainy)], TASKS["denoise"].Params(), p)[0].image, photo)
        for p in (Precision(), Precision(dtype=torch.bfloat16))
    ]
    assert abs(psnr_values[0] - psnr_values[1]) < 0.05


def test_larger_step_gives_fewer_bits_and_lower_psnr(photo):
    model, predict = load_bundled("compress-small"), TASK_OBJECTIVES["compress"].predict
    outputs = [predict(model, [Sample(photo)], CompressParams(step=step), Precision())[0] for step in (20, 32, 64)]
    nonzero = [np.count_nonzero(o.latent) for o in outputs]
    quality = [o.columns["psnr_db"] for o in outputs]
    assert nonzero == sorted(nonzero, reverse=True)
    assert quality == sorted(quality, reverse=True)


@pytest.mark.parametrize("name", ["compress-small", "conv-mnist"])
def test_latent_psnr_equals_image_psnr(name, photo, monkeypatch):
    monkeypatch.setattr("imagemill.models.latents.tile_side", lambda *size: 64)
    model, predict = load_bundled(name), TASK_OBJECTIVES["compress"].predict
    rgb = photo[:157, :131]
    for_image, for_quality, for_neither = (
        predict(model, [Sample(rgb, needs_image=i, needs_quality=q)], CompressParams(), Precision())[0]
        for i, q in ((True, True), (False, True), (False, False))
    )
    assert (for_quality.image, for_neither.image) == (None, None)
    assert for_quality.columns["psnr_db"] == pytest.approx(psnr_db(for_image.image, rgb), abs=1e-9)
    assert "psnr_db" not in for_neither.columns
    assert np.array_equal(for_neither.latent, for_image.latent)


def test_batch_changes_hardly_any_symbol(photo):
    model, predict = load_bundled("compress-small"), TASK_OBJECTIVES["compress"].predict
    single_output = predict(model, [Sample(photo)], CompressParams(), Precision())[0]
    batch_output = predict(model, [Sample(photo[::-1].copy()), Sample(photo)], CompressParams(), Precision())[1]
    assert (single_output.latent != batch_output.latent).mean() < 1e-4
    assert psnr_db(single_output.image, batch_output.image) > 60
    # An image depends only on its symbols, not on other images of the batch.
    assert np.array_equal(
        decode_latent(model, single_output.latent, photo.shape[:2], CompressParams().step, "cpu"), single_output.image
    )


def test_noise_level_of_a_large_image_is_a_median():
    coffee = Image.open(str(files("skimage.data").joinpath("coffee.png"))).convert("RGB").resize((1200, 1000))
    clean = np.asarray(coffee)
    grainy = noisy(clean, 25)
    # A third of the image covers three of its nine crops, so the other six outvote them.
    grainy[:, :400] = noisy(clean[:, :400], 90)
    model = load_bundled("denoise-small")
    with torch.inference_mode():
        level = estimate_noise_level(model, to_uint8_batch([grainy, clean], model.stride, "cpu")) * 255
    assert level.tolist() == pytest.approx([25, 0], abs=2)


def test_colorize_runs_networks_of_the_architecture_chroma(photo):
    """Networks that users trained before `palette` existed keep working."""
    model = ARCHITECTURES["chroma"](widths=[8, 8], blocks=1).eval()
    with torch.no_grad():
        model.tail.bias[:4] = 0.2
    params = TASKS["colorize"].Params()
    TASK_OBJECTIVES["colorize"].check(model, params)
    output = TASK_OBJECTIVES["colorize"].predict(model, [Sample(photo)], params, Precision())[0]
    assert np.array_equal(luma_uint8(output.image), luma_uint8(photo))
    # The first output is Cb: blue everywhere.
    assert output.image[..., 2].mean() > output.image[..., 0].mean() + 20


def test_colorize_predicts_large_images_at_reduced_size(photo):
    model, params = load_bundled("colorize-small"), TASKS["colorize"].Params()
    small_image = Image.fromarray(photo).convert("L").convert("RGB").resize((512, 512), Image.Resampling.BICUBIC)
    large = np.asarray(small_image.resize((1024, 1024), Image.Resampling.BICUBIC))
    small_output, large_output = (
        TASK_OBJECTIVES["colorize"].predict(model, [Sample(rgb)], params, Precision())[0].image
        for rgb in (np.asarray(small_image), large)
    )
    assert np.array_equal(luma_uint8(large_output), large[..., 0])
    assert colourfulness(large_output) > 5
    enlarged_output = np.asarray(Image.fromarray(small_output).resize((1024, 1024), Image.Resampling.BICUBIC))
    assert np.abs(rgb_to_chroma(large_output) - rgb_to_chroma(enlarged_output)).mean() < 0.005


@pytest.mark.parametrize(("height", "width"), [(97, 133), (99, 130), (100, 136)])
def test_noise_level_ignores_padding(photo, height, width):
    """Rows and columns that pad an image or a batch repeat pixels, and look like pixels with less noise."""
    gray = noisy(photo[:100, :136].mean(2, keepdims=True), 25).repeat(3, 2)
    samples = [Sample(gray[:height, :width].copy()), Sample(gray)]
    model, params = load_bundled("denoise-small"), TASKS["denoise"].Params()
    levels = [
        output.columns["sigma"]
        for batch in (samples[:1], samples)
        for output in TASK_OBJECTIVES["denoise"].predict(model, batch, params, Precision("cpu"))
    ]
    assert levels[0] == pytest.approx(levels[1], abs=1e-3)
    assert levels[0] == pytest.approx(levels[2], abs=0.5)
