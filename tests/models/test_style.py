"""Test style transfer against hand-computed values and stored reference values."""

import hashlib
import io
import math
from importlib.resources import files

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError

from imagemill.models import checkpoint, style_networks, style_transfer
from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.batches import to_float_batch
from imagemill.models.colour import luma_uint8
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.style_statistics import EPSILON, adain, content_loss, gram, moments, style_loss
from imagemill.models.style_transfer import StyleTransfer, transfer_style
from imagemill.models.tasks.stylize import StylizeParams
from imagemill.models.tasks.task import Sample

TASK = TASK_OBJECTIVES["stylize"]
SMALL = {"widths": [8, 12, 16], "convs": [1, 1, 1]}
COVARIANCE = SMALL | {"upsampling": "bilinear", "transform": "covariance"}


def build_net(parameters: dict) -> Perceptual:
    torch.manual_seed(3)
    net = Perceptual(**parameters).eval().requires_grad_(False)
    # Skip connections start at zero, so without this change their effect would not be tested.
    for skip in net.skips:
        torch.nn.init.normal_(skip.weight, std=0.3)
    return net


@pytest.fixture(scope="module")
def net() -> Perceptual:
    return build_net(SMALL)


@pytest.fixture(scope="module", params=[SMALL, COVARIANCE], ids=["moments", "covariance"])
def any_net(request) -> Perceptual:
    return build_net(request.param)


@pytest.fixture(scope="module")
def covariance_net() -> Perceptual:
    return build_net(COVARIANCE)


def photo(name: str, h: int, w: int) -> np.ndarray:
    image = Image.open(str(files("skimage.data").joinpath(name))).convert("RGB")
    return np.asarray(image.resize((w, h)))


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return photo("chelsea.png", 48, 64)


@pytest.fixture(scope="module")
def coffee() -> np.ndarray:
    return photo("coffee.png", 40, 56)


def stylist(net: Perceptual, style: np.ndarray, **params) -> tuple[StyleTransfer, StylizeParams]:
    style_params = StylizeParams(style=["style.jpg"], **params)
    prepared_net = TASK.prepare(net, style_params, [style], "cpu")
    assert isinstance(prepared_net, StyleTransfer)
    return prepared_net, style_params


def restyle(net: Perceptual, image: np.ndarray, style: np.ndarray, seed: int = 0, **params):
    prepared_net, style_params = stylist(net, style, **params)
    return TASK.predict(prepared_net, [Sample(image, seed=seed)], style_params, Precision())[0]


def test_gram_of_two_features():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # d=2, h=1, w=2
    # [[1,2],[3,-1]] times its transpose is [[5,1],[1,10]]; hw = 2.
    assert torch.equal(gram(features), torch.tensor([[[2.5, 0.5], [0.5, 5.0]]]))


def test_style_losses_by_hand():
    target, content = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 4.0]]]])
    assert content_loss(target, content).item() == 0.5 * (1 + 4)
    g = {"relu1_1": torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), "relu2_1": torch.tensor([[[3.0]]])}
    s = {"relu1_1": torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]), "relu2_1": torch.tensor([[[1.0]]])}
    # The means of squares are (1+1+1+1)/4 = 1 and 4, so the loss is 0.5·1 + 2·4.
    assert style_loss(g, s, {"relu1_1": 0.5, "relu2_1": 2.0}).item() == pytest.approx(8.5)


def test_adain_has_the_moments_of_the_style():
    generator = torch.Generator().manual_seed(0)
    content, style = torch.randn(2, 3, 9, 7, generator=generator), torch.rand(1, 3, 5, 5, generator=generator) * 4
    result = adain(content, moments(content), moments(style))
    for actual, expected in zip(moments(result), moments(style), strict=True):
        torch.testing.assert_close(actual, expected.expand_as(actual), atol=1e-3, rtol=1e-3)
    flat = torch.full((1, 1, 2, 2), 5.0)
    assert moments(flat)[1].item() == pytest.approx(math.sqrt(EPSILON))


def test_gatys_changes_only_the_target_image(net, cat, coffee):
    old_values = {name: value.clone() for name, value in net.state_dict().items()}
    prepared_net, _ = stylist(net, coffee, method="gatys")
    x = to_float_batch([cat], net.stride, "cpu").requires_grad_()
    content = net.features(torch.zeros_like(x), ["relu3_1"])["relu3_1"]
    sum(part_moments.sum() for part_moments in prepared_net.losses(x, content)).backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    original = cat.copy()
    output = restyle(net, cat, coffee, method="gatys", steps=5)
    assert not np.array_equal(output.image, cat)
    assert np.array_equal(cat, original)
    assert all(torch.equal(value, old_values[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("start", ["content", "noise"])
def test_gatys_loss_falls_and_returns_its_curve(net, cat, coffee, optimizer, start):
    output = restyle(net, cat, coffee, method="gatys", steps=25, optimizer=optimizer, start=start, beta=100)
    losses = output.columns["losses"]
    # The last line search of L-BFGS may evaluate a few more points.
    assert 2 < len(losses) <= (26 if optimizer == "adam" else 51)
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] == pytest.approx(output.columns["content_loss"] + 100 * output.columns["style_loss"], rel=1e-4)


def test_gatys_batch_equals_single_images(net, cat, coffee):
    prepared_net, params = stylist(net, coffee, method="gatys", steps=8, start="noise", optimizer="adam")
    samples = [Sample(cat, seed=5), Sample(cat[::-1].copy(), seed=6)]
    batch_outputs = TASK.predict(prepared_net, samples, params, Precision())
    for sample, output in zip(samples, batch_outputs, strict=True):
        single_output = TASK.predict(prepared_net, [sample], params, Precision())[0]
        assert np.abs(single_output.image.astype(int) - output.image).max() <= 2


def test_gatys_with_lower_alpha_has_more_style(net, cat, coffee):
    curves = [restyle(net, cat, coffee, method="gatys", steps=60, alpha=a).columns for a in (30, 3, 0.3, 0)]
    assert [c["content_loss"] for c in curves] == sorted(c["content_loss"] for c in curves)
    assert [c["style_loss"] for c in curves] == sorted((c["style_loss"] for c in curves), reverse=True)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_gatys_reports_progress_at_each_evaluation(net, cat, coffee, optimizer):
    """Without the reports, a large image that takes long would be taken for stuck."""
    prepared_net, params = stylist(net, coffee, method="gatys", steps=6, optimizer=optimizer)
    reports: list[None] = []
    samples = [Sample(cat[:32, :32], report_progress=lambda: reports.append(None)) for _ in range(2)]
    outputs = TASK.predict(prepared_net, samples, params, Precision())
    evaluations = [len(output.columns["losses"]) - 1 for output in outputs]
    assert len(reports) == (evaluations[0] if optimizer == "adam" else sum(evaluations)) >= 6


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_gatys_depends_on_the_ratio_of_weights(net, cat, coffee, optimizer):
    options = {"method": "gatys", "steps": 20, "optimizer": optimizer}
    large = restyle(net, cat, coffee, alpha=0.5, beta=1, **options)
    small = restyle(net, cat, coffee, alpha=0.5 * 2**-30, beta=2**-30, **options)
    assert np.array_equal(small.image, large.image)
    assert not np.array_equal(small.image, cat)
    assert np.array(small.columns["losses"]) == pytest.approx(np.array(large.columns["losses"]) * 2**-30)


def test_strength_interpolates_to_the_full_style(any_net, cat, coffee):
    x = to_float_batch([cat], any_net.stride, "cpu")
    prepared_net, _ = stylist(any_net, coffee)
    plain, full = any_net(x), prepared_net(x)
    assert torch.equal(transfer_style(prepared_net, x, [0], 0.0), plain)
    torch.testing.assert_close(transfer_style(prepared_net, x, [0], 1.0), full)
    assert not torch.allclose(plain, full, atol=0.01)


@pytest.mark.parametrize("pixels", [10_000, 1_000_000])
def test_tiles_use_statistics_of_the_whole_image(any_net, coffee, monkeypatch, pixels):
    x = to_float_batch([photo("astronaut.png", 200, 264)], any_net.stride, "cpu")
    prepared_net, _ = stylist(any_net, coffee)
    monkeypatch.setattr(style_transfer, "STATISTICS_PIXELS", pixels)
    full_output = transfer_style(prepared_net, x, [5], 1.0)
    monkeypatch.setattr(style_transfer, "TILE", 64)
    tiles = transfer_style(prepared_net, x, [5], 1.0)
    assert (tiles - full_output).abs().max() < 1 / 255
    part_output = transfer_style(prepared_net, x[..., :64], [5], 1.0)
    assert (part_output[..., :16] - full_output[..., :16]).abs().max() > 2 / 255


def test_flat_regions_get_the_texture_of_the_style(covariance_net, cat, coffee):
    flat = cat.copy()
    flat[:, 24:] = 90
    first, again, other = (restyle(covariance_net, flat, coffee, seed=seed).image[:, 40:].astype(int) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 1
    assert first.std() > 1


def test_one_pass_in_a_batch_equals_single_images(any_net, cat, coffee):
    prepared_net, params = stylist(any_net, coffee)
    samples = [Sample(cat, seed=5), Sample(cat[::-1].copy(), seed=6)]
    for sample, output in zip(samples, TASK.predict(prepared_net, samples, params, Precision()), strict=True):
        single_output = TASK.predict(prepared_net, [sample], params, Precision())[0]
        assert np.abs(single_output.image.astype(int) - output.image).max() <= 1


def test_styles_are_mixed_by_weights(any_net, cat, coffee):
    net, params = any_net, StylizeParams(style=["a", "b"], style_weights=[3, 1])
    mixed = TASK.prepare(net, params, [cat, coffee], "cpu").target
    one, other = (stylist(net, style)[0].target for style in (cat, coffee))
    for actual, a, b in zip(*(t.layers["relu3_1"] for t in (mixed, one, other)), strict=True):
        torch.testing.assert_close(actual, 0.75 * a + 0.25 * b)
    single_target = TASK.prepare(net, params.model_copy(update={"style_weights": [1, 0]}), [cat, coffee], "cpu").target
    for name, actual in single_target.grams.items():
        torch.testing.assert_close(actual, one.grams[name])
        assert not torch.allclose(mixed.grams[name], actual, atol=1e-3)


def test_preserve_color_keeps_the_chroma(net, cat, coffee):
    gray = np.repeat(luma_uint8(cat)[..., None], 3, 2).astype(np.uint8)
    output = restyle(net, gray, coffee, preserve_color=True)
    assert np.ptp(output.image.astype(int), axis=2).max() <= 1
    assert not output.has_colours
    colour_output = restyle(net, gray, coffee)
    assert colour_output.has_colours


@pytest.mark.parametrize("method", ["adain", "gatys"])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 17)])
def test_stylize_keeps_image_size(net, coffee, method, size):
    image = photo("chelsea.png", *size)
    output = restyle(net, image, coffee, method=method, **({"steps": 2} if method == "gatys" else {}))
    assert output.image.shape == image.shape


@pytest.mark.parametrize("method", ["adain", "gatys"])
def test_stylize_reduces_to_size(net, cat, coffee, method):
    output = restyle(net, cat, coffee, method=method, size=32, **({"steps": 2} if method == "gatys" else {}))
    assert output.image.shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": -1}, "greater than or equal to 0"),
        ({"beta": math.nan}, "finite number"),
        ({"alpha": 0, "beta": 0, "method": "gatys"}, "both 0"),
        ({"style_weights": [1, 2]}, "style_weights: 2 weights for 1 style images"),
        ({"style_weights": [0]}, "one must be above 0"),
        ({"style_layers": {"relu1_1": -1}, "method": "gatys"}, "at least 0"),
        ({"steps": 10}, "steps: only the method gatys uses it, but method=adain"),
        ({"strength": 0.5, "method": "gatys"}, "strength: only the method adain uses it"),
        ({"strength": 2}, "less than or equal to 1"),
        ({"style": []}, "at least 1 item"),
        ({"size": 9000, "method": "gatys"}, "size=9000: must be at most 4096"),
    ],
)
def test_stylize_params_refuse_contradictions(params, message):
    with pytest.raises(ValidationError, match=message):
        StylizeParams(**{"style": ["a.jpg"], **params})


def test_check_refuses_unsuitable_networks(net):
    with pytest.raises(CheckpointError, match=r"layer 'conv9': does not exist in the network. Valid: relu1_1, relu2_1"):
        TASK.check(net, StylizeParams(style=["a"], style_layers={"conv9": 1}))
    with pytest.raises(CheckpointError, match="method=adain: needs a network with a trained decoder"):
        TASK.check(Perceptual(**SMALL, decoder=False), StylizeParams(style=["a"]))


def test_random_network_is_deterministic():
    card, weights = checkpoint.read("random")
    assert checkpoint.read("random") == (card, weights)
    assert isinstance(checkpoint.build(card, weights), Perceptual)


def test_vgg19_is_converted_and_checked(tmp_path, monkeypatch):
    """Use a file in torchvision's layout with random weights, because the real download has 548 MB."""
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features
    features = features.to_empty(device="cpu").half()
    for parameter in features.parameters():
        parameter.data.normal_(0, 0.05)
    out = io.BytesIO()
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(2, 2)}, out)
    path = tmp_path / "vgg19-dcbb9e9d.pth"
    path.write_bytes(out.getvalue())
    with pytest.raises(CheckpointError, match=r"sha256 begins with [0-9a-f]{8}, but that of torchvision's VGG-19 begins"):
        checkpoint.read(str(path))
    monkeypatch.setattr(style_networks, "VGG19_SHA256", hashlib.sha256(out.getvalue()).hexdigest()[:8])
    card, weights = checkpoint.read(str(path))
    network = checkpoint.build(card, weights)
    assert card.parameters["mean"] == [0.485, 0.456, 0.406]
    assert network.layers[-1] == "relu5_1"
    convolutions = [layer for layer in features if isinstance(layer, torch.nn.Conv2d)]
    for layer, convolution in zip(network.encoder.values(), convolutions, strict=False):
        assert torch.equal(layer.weight, convolution.weight.float())
        assert torch.equal(layer.bias, convolution.bias.float())
    torch.save({key: value[:1] for key, value in state.items()}, path)
    monkeypatch.setattr(style_networks, "VGG19_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(CheckpointError, match="not the weights of torchvision's VGG-19: RuntimeError"):
        checkpoint.read(str(path))
    with pytest.raises(CheckpointError, match=r"vgg19\.pth is missing"):
        checkpoint.read(str(tmp_path / "vgg19.pth"))
    with pytest.raises(CheckpointError, match=r"unsupported scheme 'https'\. Valid: file, s3"):
        checkpoint.read("https://127.0.0.1:1/vgg19.pth")
    with pytest.raises(CheckpointError, match=r"checkpoint /: vgg19-of-nobody\.pth is missing"):
        checkpoint.read("/vgg19-of-nobody.pth")
    with pytest.raises(CheckpointError, match="pickled weights are refused"):
        checkpoint.read(str(tmp_path / "resnet.pth"))


@pytest.mark.parametrize("parameters", [SMALL, COVARIANCE])
def test_stylize_trains_only_the_decoder(parameters):
    model = build_net(parameters).requires_grad_(True)
    TASK.freeze(model)
    TASK.loss(model, torch.rand(5, 3, 24, 24), torch.Generator().manual_seed(0))["loss"].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}


@pytest.mark.parametrize("width", [4, 20, 24, 36])
def test_stylize_validates_images_of_any_width(net, width):
    figures = TASK.validate(net, torch.rand(1, 3, 24, width), torch.Generator().manual_seed(0))
    assert all(math.isfinite(value) for value in figures.values())


def test_flat_style_has_a_finite_loss():
    model = Perceptual(**SMALL)
    x = torch.rand(4, 3, 24, 24)
    x[1] = 0.5
    assert torch.isfinite(TASK.loss(model, x, torch.Generator().manual_seed(0))["loss"])
