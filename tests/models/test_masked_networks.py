"""Imported networks that fill holes: equal to spandrel's call, kept pixels untouched, whole images within memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from imagemill.models.batches import to_uint8_images
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.routes import spandrel_route
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.routes.trial import try_network
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.card_checks import check_card, tasks_for
from imagemill.models.tasks.task import Output, Sample, SampleError
from imagemill.pipeline.loaded_checkpoint import LoadedCheckpoint
from tests.support.imported_networks import build_network, lama, python_card, shrink_lama, spandrel_card

CONTRACT = {"mask": True, "size_multiple": 8}
HOLES = ((0.2, 0.5, 0.3, 0.7), (0.6, 1.0, 0.0, 0.4))
"""Top, bottom, left and right of the holes, as shares of the sides."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_lama(monkeypatch.setattr)


@pytest.fixture
def model() -> ImageNetwork:
    return build_network(spandrel_card(lama(), "LaMa", "inpaint", **CONTRACT))


def damage(rgb: np.ndarray, holes: tuple[tuple[float, ...], ...] = HOLES) -> Sample:
    """Return a sample with a mask, whose missing pixels hold noise."""
    h, w = rgb.shape[:2]
    mask = np.zeros((h, w), np.uint8)
    for top, bottom, left, right in holes:
        mask[round(top * h) : round(bottom * h), round(left * w) : round(right * w)] = 255
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape, np.uint8)
    return Sample(np.where(mask[..., None] > 0, noise, rgb), mask=mask)


def fill(model: ImageNetwork, samples: list[Sample], **options: Any) -> list[Output]:
    return TASK_OBJECTIVES["inpaint"].predict(model, samples, TASKS["inpaint"].Params(), Precision(**options))


def count_calls(model: ImageNetwork) -> list[int]:
    """Return a list that receives the number of images of each later call of the network."""
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("size", [(64, 80), (57, 91), (5, 17), (40, 13)])
def test_lama_equals_its_descriptor(size: tuple[int, int], model: ImageNetwork, crops: list[np.ndarray]) -> None:
    """Alone and in a batch, at sizes that are padded. All pixels outside of the mask are those of the source."""
    descriptor = spandrel_route.load_descriptor(model.module.state_dict()).eval()
    samples = [damage(crop[: size[0], : size[1]], HOLES[:count]) for crop, count in zip(crops[:2], (1, 2), strict=True)]
    alone = [fill(model, [sample])[0] for sample in samples]
    for outputs in (alone, fill(model, samples)):
        for sample, output in zip(samples, outputs, strict=True):
            x = torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1)[None].float() / 255
            mask = torch.from_numpy(sample.mask)[None, None].float() / 255
            with torch.inference_mode():
                expected = to_uint8_images(descriptor(x, mask))[0]
            missing = sample.mask > 0
            assert np.array_equal(output.image[~missing], sample.rgb[~missing])
            assert np.abs(output.image.astype(int) - expected)[missing].max() <= 1
            assert np.ptp(output.image[missing]) > 0
            assert output.columns == {"missing_share": pytest.approx(missing.mean())}


def test_complete_image_does_not_pass_the_network(model: ImageNetwork, crops: list[np.ndarray]) -> None:
    sizes = count_calls(model)
    complete, damaged = damage(crops[0], ()), damage(crops[1])
    outputs = fill(model, [complete, damaged, complete])
    assert sizes == [1]
    assert np.array_equal(outputs[0].image, crops[0])
    assert (outputs[1].image != damaged.rgb).any()
    assert np.array_equal(outputs[2].image, crops[0])


def test_image_with_mask_too_large_for_memory_is_rejected(model: ImageNetwork, crops: list[np.ndarray]) -> None:
    """The message names no option that inpaint does not have."""
    model.bytes_per_pixel = 1000
    needed = 96 * 128 * 1000
    sizes = count_calls(model)
    samples = [damage(crops[0]), damage(crops[1])]
    fill(model, samples, memory=2 * needed)
    fill(model, samples, memory=needed)
    assert sizes == [2, 1, 1]
    message = (
        "128×96 pixels need 0.0123 GB.*Reduce the image and its mask to a longer side of 90 pixels, or run fewer workers"
    )
    with pytest.raises(SampleError, match=message) as error:
        fill(model, samples, memory=needed // 2)
    assert error.value.error_class == "TooLargeForMemory"
    assert "--resize" not in str(error.value)
    assert "--tile" not in str(error.value)
    assert sizes == [2, 1, 1]


def test_filled_pixels_must_be_finite(model: ImageNetwork, crops: list[np.ndarray]) -> None:
    with torch.no_grad():
        next(iter(model.module.parameters())).fill_(torch.nan)
    with pytest.raises(SampleError, match="not finite"):
        fill(model, [damage(crops[0])])


@pytest.mark.parametrize("task", ["denoise", "restore", "upscale", "compress", "colorize"])
def test_network_with_masks_is_refused_by_other_tasks(task: str) -> None:
    card = python_card("inpaint", **CONTRACT)
    assert tasks_for(card) == ["inpaint"]
    message = f"^checkpoint mine: fills the pixels that a mask marks, so {task} cannot use it. Use `imagemill inpaint`$"
    with pytest.raises(CheckpointError, match=message):
        check_card("mine", card, TASKS[task], TASKS[task].Params())


@pytest.mark.parametrize("missing", ["red", "green", "blue"])
def test_network_with_masks_refuses_a_lost_plane(missing: str) -> None:
    inpaint = TASKS["inpaint"]
    with pytest.raises(CheckpointError, match="mine fills whole pixels, not one plane"):
        check_card("mine", python_card("inpaint", **CONTRACT), inpaint, inpaint.Params(missing=missing))
    for possible in ("file", "alpha", "key", "random"):
        check_card("mine", python_card("inpaint", **CONTRACT), inpaint, inpaint.Params(missing=possible))


def test_loaded_checkpoint_fills_an_array(crops: list[np.ndarray]) -> None:
    checkpoint = LoadedCheckpoint(*spandrel_card(lama(), "LaMa", "inpaint", **CONTRACT), device="cpu")
    sample = damage(crops[0])
    filled = checkpoint(sample.rgb, mask=sample.mask > 0)
    assert np.array_equal(filled, fill(checkpoint.model, [sample])[0].image)


def invert_mask(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return an image whose pixels outside of the mask are filled."""
    return image * mask


def spread_nan(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return image * (1 - mask) / (1 - mask)


@pytest.mark.parametrize(
    ("forward", "message"), [(invert_mask, "mask that is 1 where a pixel is missing"), (spread_nan, "not finite")]
)
def test_trial_checks_what_the_mask_means(
    forward: Callable[..., torch.Tensor], message: str, model: ImageNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = try_network(model, model.contract)
    assert 0 < trial.psnr_db < 40
    monkeypatch.setattr(model.module, "forward", forward)
    with pytest.raises(CheckpointError, match=message):
        try_network(model, model.contract)
