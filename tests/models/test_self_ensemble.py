import numpy as np
import pytest
import torch

from imagemill.models import checkpoint
from imagemill.models.metrics import psnr_db
from imagemill.models.objectives import TASK_OBJECTIVES, image_networks
from imagemill.models.objectives import denoise as denoise_objective
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from tests.models.test_image_networks import SPANDREL, build_network, spandrel_card


def predict(task, model, images, **params):
    samples = [Sample(image.copy()) for image in images]
    outputs = TASK_OBJECTIVES[task].predict(model, samples, TASKS[task].Params(**params), Precision())
    return [output.image for output in outputs]


def views(rgb):
    """All flips and turns of an image, each with the function that turns it back."""
    for turns in range(4):
        yield np.rot90(rgb, turns), lambda y, turns=turns: np.rot90(y, -turns)
        yield np.rot90(rgb, turns)[:, ::-1], lambda y, turns=turns: np.rot90(y[:, ::-1], -turns)


@pytest.mark.parametrize("task", ["denoise", "upscale"])
def test_ensemble_is_the_mean_over_flips_and_turns(task, crops):
    model = checkpoint.build(*checkpoint.read(f"{task}-small"))
    # Values that no view clips.
    rgb = crops[0][:64, :48] // 2 + 64
    params = {"sigma": 25} if task == "denoise" else {}
    [result] = predict(task, model, [rgb], ensemble=True, **params)
    expected = np.mean(
        [back(predict(task, model, [np.ascontiguousarray(x)], **params)[0]).astype(float) for x, back in views(rgb)], 0
    )
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1


def test_ensemble_removes_more_noise(crops):
    model = checkpoint.build(*checkpoint.read("denoise-small"))
    noise = np.random.default_rng(0).normal(0, 40, crops[0].shape)
    noisy = (crops[0] + noise).clip(0, 255).round().astype(np.uint8)
    alone, together = (predict("denoise", model, [noisy], sigma=40, ensemble=on)[0] for on in (False, True))
    assert psnr_db(together, crops[0]) > psnr_db(alone, crops[0])


@pytest.mark.parametrize("name", ["DRUNet", "Compact"])
def test_ensemble_is_the_same_in_batches_and_tiles(name, crops, monkeypatch):
    """At sizes that are no multiples of those that the network takes."""
    torch.manual_seed(0)
    build, task, contract = SPANDREL[name]
    model = build_network(spandrel_card(build(), name, task, **contract))
    images = [np.tile(crop, (1, 3, 1))[:93, :330] for crop in crops[:2]]
    alone = [predict(task, model, [rgb], ensemble=True)[0] for rgb in images]
    batch = predict(task, model, images, ensemble=True)
    monkeypatch.setattr(image_networks, "tile_side", lambda *size: 64)
    tiled = predict(task, model, images, ensemble=True)
    for results in (batch, tiled):
        assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(results, alone, strict=True)) <= 1


def test_ensemble_of_the_bundled_denoiser_is_the_same_in_tiles(crops, monkeypatch):
    model = checkpoint.build(*checkpoint.read("denoise-small"))
    rgb = np.tile(crops[0], (3, 4, 1))[:301, :413]
    [whole] = predict("denoise", model, [rgb], sigma=25, ensemble=True)
    monkeypatch.setattr(denoise_objective, "tile_side", lambda *size: 128)
    [tiled] = predict("denoise", model, [rgb], sigma=25, ensemble=True)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
