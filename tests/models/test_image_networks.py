"""Imported networks from images to images: equal to the library's call, in tiles or whole, within memory."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from imagemill.models.batches import to_uint8_images
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import TASK_OBJECTIVES, image_networks
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.precision import Precision
from imagemill.models.routes import probe
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.routes.spandrel_route import load_descriptor
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.card_checks import check_card, check_dtype, tasks_for
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tasks.task import Sample, SampleError
from imagemill.models.tiling import apply_blended, overlapping_slices
from tests.support.imported_networks import (
    Blur,
    Normalised,
    TakesLevel,
    build_network,
    python_card,
    python_network,
    spandrel_card,
)

SIZES = [(57, 91), (5, 17)]


def drunet() -> nn.Module:
    from spandrel.architectures.DRUNet import DRUNet

    return DRUNet(in_nc=4, out_nc=3, nc=[8, 8, 16, 16], nb=2)


def dncnn() -> nn.Module:
    from spandrel.architectures.DnCNN import DnCNN

    return DnCNN(in_nc=1, out_nc=1, nc=8, nb=17, act_mode="R")


def compact() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=8, num_conv=2, upscale=3)


def esrgan() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(in_nc=3, out_nc=3, scale=4, num_filters=8, num_blocks=1)


SPANDREL = {
    "DnCNN": (dncnn, "denoise", {"channels": 1, "tiling": "exact", "halo": 18}),
    "DRUNet": (drunet, "denoise", {"noise_level": True, "size_multiple": 8, "tiling": "exact", "halo": 104}),
    "Compact": (compact, "upscale", {"scale": 3, "tiling": "exact", "halo": 6}),
    "ESRGAN": (esrgan, "upscale", {"scale": 4, "tiling": "exact", "halo": 20}),
}


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    """Return the largest difference of two images in 8-bit levels."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def predict(task: str, model: ImageNetwork, images: list[np.ndarray], **params: object) -> list[np.ndarray]:
    samples = [Sample(image.copy()) for image in images]
    outputs = TASK_OBJECTIVES[task].predict(model, samples, TASKS[task].Params(**params), Precision())
    return [output.image for output in outputs]


@pytest.mark.parametrize("name", SPANDREL)
@pytest.mark.parametrize("size", [(40, 330), *SIZES])
def test_spandrel_network_equals_its_descriptor(name, size, crops, monkeypatch):
    """Alone, in a batch and in tiles; at sizes that are no multiples or smaller than the receptive field."""
    build, task, contract = SPANDREL[name]
    network = spandrel_card(build(), name, task, **contract)
    model = build_network(network)
    descriptor = load_descriptor(model.module.state_dict())
    assert descriptor.architecture.id == name
    images = [np.tile(crop, (1, 3, 1))[: size[0], : size[1]] for crop in crops[:2]]
    expected = []
    for rgb in images:
        x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
        planes = x if contract.get("channels", 3) == 3 else x.transpose(0, 1)
        y = torch.cat([descriptor(plane[None]) for plane in planes])
        expected.append(to_uint8_images(y.reshape(1, 3, *y.shape[2:]))[0])
    alone = [predict(task, model, [rgb])[0] for rgb in images]
    batch = predict(task, model, images)
    monkeypatch.setattr(image_networks, "tile_side", lambda *size: 64)
    tiled = predict(task, model, images)
    for results in (alone, batch, tiled):
        assert max(map(levels_apart, results, expected)) <= 1


def test_drunet_gets_the_given_noise_level(crops):
    model = build_network(spandrel_card(drunet(), "DRUNet", "denoise", **SPANDREL["DRUNet"][2]))
    x = torch.from_numpy(crops[0].copy()).permute(2, 0, 1)[None].float() / 255
    y = model.module(torch.cat([x, torch.full_like(x[:, :1], 40 / 255)], 1))
    [output] = TASK_OBJECTIVES["denoise"].predict(
        model, [Sample(crops[0].copy())], TASKS["denoise"].Params(sigma=40), Precision()
    )
    assert levels_apart(output.image, to_uint8_images(y)[0]) <= 1
    assert output.columns == {"sigma": pytest.approx(40)}


@pytest.mark.parametrize(("sigma", "used"), [(None, 15), (50, 50)])
def test_denoise_records_the_level_that_it_used(sigma, used, crops):
    model = python_network(TakesLevel(), noise_level=True)
    [output] = TASK_OBJECTIVES["denoise"].predict(
        model, [Sample(crops[0].copy())], TASKS["denoise"].Params(sigma=sigma), Precision()
    )
    expected = crops[0] + (127.5 - crops[0]) * (used / 255)
    assert output.columns == {"sigma": pytest.approx(used)}
    assert np.abs(output.image - expected).max() <= 1
    blind = python_network(Blur())
    [output] = TASK_OBJECTIVES["denoise"].predict(blind, [Sample(crops[0].copy())], TASKS["denoise"].Params(), Precision())
    assert output.columns == {"sigma": None}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1, 2])
def test_python_network_equals_its_module(size, scale, crops):
    module = Blur(scale=scale)
    task = "restore" if scale == 1 else "upscale"
    model = python_network(module, scale=scale, tiling="exact", halo=2)
    rgb = crops[0][: size[0], : size[1]]
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
    [result] = predict(task, model, [rgb])
    assert levels_apart(result, to_uint8_images(module(x).detach())[0]) <= 1


def test_image_network_pads_small_images_and_multiples(crops):
    """A module that refuses what the contract excludes gets a padded image; the result has the size of the image."""

    class Strict(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if min(x.shape[2:]) < 24 or x.shape[2] % 8 or x.shape[3] % 8:
                raise RuntimeError(f"shape {x.shape}")
            return 1 - x

    from imagemill.models.contract import Contract

    model = ImageNetwork(Strict(), Contract(size_multiple=8, min_side=20))
    for h, w in ((3, 5), (24, 25), (40, 64)):
        rgb = crops[0][:h, :w]
        assert levels_apart(predict("restore", model, [rgb])[0], 255 - rgb) <= 1


def test_network_with_global_statistics_stays_whole(crops, monkeypatch):
    """The default tiling calls the module once for each image, at its own size; blended tiles are an explicit choice."""
    module = Normalised()
    model = python_network(module)
    assert model.tiling == "never"
    for name, value in (("BLENDED_TILE", 32), ("BLENDED_OVERLAP", 8), ("ALIGNMENT", 8)):
        monkeypatch.setattr(image_networks, name, value)
    monkeypatch.setattr(image_networks, "tile_side", lambda *size: 16)
    x = torch.from_numpy(crops[0].copy()).permute(2, 0, 1)[None].float() / 255
    whole = to_uint8_images(module(x).detach())[0]
    sizes = []
    model.module.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    [result] = predict("restore", model, [crops[0]])
    assert levels_apart(result, whole) <= 1
    assert sizes == [(1, 3, 96, 128)]
    [tiled] = predict("restore", model, [crops[0]], tile="approximate")
    assert max(max(size) for size in sizes[1:]) <= 32
    assert 0 < np.abs(tiled.astype(float) - whole).mean() < 12


def test_blended_tiles_show_no_seam():
    """Tiles of different brightness join without a step: the largest step between neighbours is that of the ramp."""
    brightness = iter(torch.linspace(0, 1, 40).tolist())
    x = torch.zeros(1, 3, 100, 150)
    y = apply_blended(lambda part: torch.full_like(part, next(brightness)), x, 32, 8, 1, 4, lambda rows: rows)
    assert y.shape == x.shape
    steps = max(float(y.diff(dim=axis).abs().max()) for axis in (2, 3))
    hard = 7 / 39  # Between rows of tiles.
    assert 0 < steps <= hard / 8 * 1.01
    same = torch.rand(1, 3, 100, 150)
    doubled = apply_blended(
        lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3), same, 32, 8, 2, 4, lambda r: r
    )
    assert torch.allclose(doubled, same.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 40, 41, 57, 96, 97, 1000])
@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(32, 8, 4), (32, 16, 16), (36, 12, 12)])
def test_overlapping_slices_cover_and_overlap_in_pairs(length, tile, overlap, multiple):
    slices = overlapping_slices(length, tile, overlap, multiple)
    assert (slices[0][0], slices[-1][1]) == (0, length)
    assert all(start % multiple == 0 and 0 < end - start <= tile for start, end in slices)
    for (_, end), (start, _) in pairwise(slices):
        assert end - start == overlap
    for (_, end), (start, _) in zip(slices, slices[2:], strict=False):
        assert end <= start


def test_image_too_large_for_memory_says_what_helps(crops):
    model = python_network(Normalised(), bytes_per_pixel=1000)
    images = [crops[0].copy(), crops[1].copy()]
    needed = 96 * 128 * 1000
    sizes = []
    model.module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    process_images(model, images, ImageParams(), Precision(memory=2 * needed))
    process_images(model, images, ImageParams(), Precision(memory=needed))
    assert sizes == [2, 1, 1]
    with pytest.raises(SampleError, match=r"128×96 pixels need 0.0123 GB.*--resize max:127\).*--tile approximate") as error:
        process_images(model, images, ImageParams(), Precision(memory=needed - 1))
    assert error.value.error_class == "TooLargeForMemory"
    assert sizes == [2, 1, 1]
    # Without the figure, the lack of memory itself is the reason.
    unknown = python_network(Normalised())

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    unknown.module.register_forward_pre_hook(fail)
    with pytest.raises(SampleError, match="do not fit into the free memory"):
        process_images(unknown, images[:1], ImageParams(), Precision())
    with pytest.raises(torch.OutOfMemoryError):
        process_images(unknown, images, ImageParams(), Precision())


def test_exact_tiles_shrink_to_the_memory(crops):
    model = python_network(Blur(), tiling="exact", halo=2, bytes_per_pixel=1000)
    rgb = np.tile(crops[0], (4, 4, 1))
    whole = process_images(model, [rgb.copy()], ImageParams(), Precision())[0]
    sizes = []
    model.module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:].numel()))
    tiled = process_images(model, [rgb.copy()], ImageParams(), Precision(memory=140**2 * 1000))[0]
    assert max(sizes) <= 140**2
    assert levels_apart(whole, tiled) <= 1


def test_network_that_gives_no_image_is_an_error_of_the_image(crops):
    with torch.no_grad():
        module = Blur()
        module.layers[0].weight.fill_(torch.nan)
    for network, message in (
        (module, "not finite"),
        (Blur(), r"made \(3, 96, 128\) of \(3, 96, 128\), not \(3, 288, 384\)"),
    ):
        model = python_network(network)
        model.scale = 3 if "made" in message else 1
        with pytest.raises(SampleError, match=message):
            process_images(model, [crops[0].copy()], ImageParams(), Precision())


@pytest.mark.parametrize(
    ("task", "contract", "refused", "message"),
    [
        ("upscale", {"scale": 2}, "denoise", "enlarges images to 2 times.*denoise cannot use it. Use `imagemill upscale`"),
        ("upscale", {"scale": 4}, "restore", "Use `imagemill upscale`"),
        ("restore", {}, "upscale", "same size, so upscale cannot use it. Use `imagemill restore` or `imagemill denoise`"),
        ("denoise", {}, "compress", "Use `imagemill denoise` or `imagemill restore`"),
        (
            "denoise",
            {"noise_level": True},
            "restore",
            "takes their noise level, so restore cannot use it. Use `imagemill denoise`",
        ),
        ("compress", {"latent": {"channels": 4, "factor": 8}}, "denoise", "float latents.*Use `imagemill compress`"),
        ("denoise", {}, "inpaint", "Use `imagemill denoise`"),
        ("denoise", {}, "stylize", "Use `imagemill denoise`"),
        ("denoise", {}, "colorize", "Use `imagemill denoise`"),
    ],
)
def test_check_card_names_the_command_to_use(task, contract, refused, message):
    card = python_card(task, **contract)
    assert tasks_for(card)[0] == task
    params = TASKS[refused].Params(**({"style": ["s.png"]} if refused == "stylize" else {}))
    with pytest.raises(CheckpointError, match=f"^checkpoint mine: .*{message}"):
        check_card("mine", card, TASKS[refused], params)
    check_card("mine", card, TASKS[task], TASKS[task].Params())


def test_check_card_refuses_parameters_of_other_networks():
    card = python_card("denoise", tiling="exact", dtypes=("float32", "bfloat16"))
    denoise = TASKS["denoise"]
    with pytest.raises(CheckpointError, match=r"params.sigma=25: checkpoint mine takes no noise level. Omit sigma"):
        check_card("mine", card, denoise, denoise.Params(sigma=25))
    with pytest.raises(CheckpointError, match="already give the result of the whole image"):
        check_card("mine", card, denoise, denoise.Params(tile="approximate"))
    with pytest.raises(CheckpointError, match=r"pool.dtype='float16'.*Valid: float32, bfloat16"):
        check_dtype("mine", card, "float16")
    check_dtype("mine", card, "bfloat16")
    with pytest.raises(CheckpointError, match=r"compress needs a network of the class .* not ImageNetwork"):
        TASK_OBJECTIVES["compress"].check(python_network(Blur()), TASKS["compress"].Params())


def test_probe_measures_tiling_memory_and_formats():
    with torch.inference_mode():
        unaligned = drunet().eval()
        run = lambda x: unaligned(torch.cat([x, x[:, :1]], 1))  # noqa: E731
        tiling, halo, multiple = probe.measure_tiling(run, 3, 8, Fraction(1))
        assert (tiling, multiple, halo % 8) == ("exact", 8, 0)
        assert probe.measure_tiling(Normalised(), 3, 1, Fraction(1)) == ("never", 0, 1)
        # A network that pads its input takes any size, but the result depends on where a tile begins.
        padded = nn.functional.pad

        def pads(x: torch.Tensor) -> torch.Tensor:
            h, w = x.shape[2:]
            return run(padded(x, (0, -w % 8, 0, -h % 8), mode="replicate"))[..., :h, :w]

        assert probe.measure_sizes(pads, 3)[1] == 1
        assert probe.measure_tiling(pads, 3, 1, Fraction(1))[2] > 1
        # Two layers of 8 and 16 planes of 4 bytes are in memory at once.
        wide = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1))
        assert 96 <= probe.measure_memory(wide, 3) <= 130

        def coarse(x: torch.Tensor) -> torch.Tensor:
            return (100 * x).matmul(torch.eye(x.shape[3])) - 99 * x

        assert probe.measure_dtypes(coarse, probe.random_images(3, 32, 32)) == ("float32",)
        assert probe.measure_dtypes(nn.Identity(), probe.random_images(3, 32, 32)) == ("float32", "bfloat16", "float16")
