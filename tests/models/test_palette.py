"""Tests of the encoder from ImageNet and of the network that predicts colours of a palette."""

import pytest
import torch
from torch import Tensor, nn

from imagemill.jobs.training.states import State
from imagemill.jobs.training.step import Step, TaskLoss
from imagemill.models.architectures.palette import PaletteNet
from imagemill.models.efficientnet import EfficientNetLite, fold_published_weights
from imagemill.models.objectives.colorize import Colorize
from imagemill.models.precision import Precision

SMALL = {"widths": (8, 8, 8)}


def published_weights() -> dict[str, Tensor]:
    """Return random weights with the names and shapes of the published file, up to the last block that is used."""
    generator = torch.Generator().manual_seed(0)
    published: dict[str, Tensor] = {}

    def add(convolution: str, norm: str, weight: Tensor) -> None:
        published[f"{convolution}.weight"] = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
        for name in ("weight", "bias", "running_mean", "running_var"):
            published[f"{norm}.{name}"] = torch.rand(len(weight), generator=generator) + 0.5

    add("_conv_stem", "_bn0", torch.empty(32, 3, 3, 3))
    blocks = [block for stage in EfficientNetLite().stages for block in stage]
    for index, block in enumerate(blocks):
        if block.expand is not None:
            add(f"_blocks.{index}._expand_conv", f"_blocks.{index}._bn0", block.expand.weight)
        add(f"_blocks.{index}._depthwise_conv", f"_blocks.{index}._bn1", block.depthwise.weight)
        add(f"_blocks.{index}._project_conv", f"_blocks.{index}._bn2", block.project.weight)
    return published


def test_folded_stem_equals_normalised_rgb_stem() -> None:
    """One filter of luma gives the features of three equal planes, with TensorFlow's padding and the batch norm."""
    published, encoder = published_weights(), EfficientNetLite()
    encoder.load_state_dict(fold_published_weights(published))
    luma = torch.rand(2, 1, 64, 64)
    planes = nn.functional.pad((luma.expand(-1, 3, -1, -1) * 255 - 127) / 128, (0, 1, 0, 1))
    z = nn.functional.conv2d(planes, published["_conv_stem.weight"], stride=2)
    norms = [published[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    expected_stem = nn.functional.batch_norm(z, *norms, eps=1e-3)
    torch.testing.assert_close(encoder.stem((luma * 255 - 127) / 128), expected_stem, atol=1e-4, rtol=1e-4)
    assert [tuple(f.shape[1:]) for f in encoder(luma)] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (192, 2, 2)]


def test_fold_needs_every_layer() -> None:
    published = published_weights()
    del published["_blocks.13._project_conv.weight"]
    with pytest.raises(KeyError, match="_blocks"):
        fold_published_weights(published)


def test_untrained_palette_is_gray() -> None:
    assert PaletteNet(**SMALL).eval()(torch.rand(1, 1, 64, 64)).abs().max() < 1e-6


def test_lower_temperature_gives_stronger_colours() -> None:
    torch.manual_seed(0)
    network = PaletteNet(**SMALL).eval()
    nn.init.normal_(network.head.weight)
    logits = network.classify(network.encode(torch.rand(1, 1, 64, 64)))
    mean, annealed = (network.mean_colour(logits, temperature).square().mean() for temperature in (1.0, 0.5))
    assert annealed > 1.2 * mean > 0


@pytest.mark.parametrize("chroma", [(0.0, 0.0), (0.11, -0.07), (-0.5, 0.5), (0.3, 0.02)])
def test_cross_entropy_is_lowest_for_the_true_colour(chroma: tuple[float, float]) -> None:
    """The gradient leads the logits to a distribution whose mean is the colour, up to the spacing of the palette."""
    network = PaletteNet(**SMALL)
    target = torch.tensor(chroma).view(1, 2, 1, 1)
    logits = torch.zeros(1, 121, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        network.cross_entropy(logits, target).sum().backward()
        optimizer.step()
    assert (network.mean_colour(logits, 1.0) - target).abs().max() < 0.015


def test_training_keeps_frozen_stages_and_slows_the_encoder() -> None:
    network = PaletteNet(**SMALL, frozen=2)
    nn.init.normal_(network.head.weight)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    objective = Colorize()
    objective.freeze(network)
    state = State.begin(network, 0.9, 0.0, encoder_rate=0.1)
    step = Step(TaskLoss("colorize", network), state, Precision(), 1e9)
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    step(crops, torch.Generator().manual_seed(0), 1e-3)
    # The first step of Adam moves each weight by the learning rate.
    moved = {name: (value.detach() - before[name]).abs().max().item() for name, value in network.named_parameters()}
    frozen = ("encoder.stem.", "encoder.stages.0.", "encoder.stages.1.")
    assert {value for name, value in moved.items() if name.startswith(frozen)} == {0.0}
    assert moved["head.weight"] == pytest.approx(1e-3, rel=0.05)
    assert moved["encoder.stages.5.0.project.weight"] == pytest.approx(1e-4, rel=0.05)
