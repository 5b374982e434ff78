import pytest
import torch

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.objectives.perceive import contrastive_loss


def test_contrastive_loss_of_matching_halves_is_low():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 3, 1, 1, generator=generator) * torch.randn(6, 3, 8, 8, generator=generator)
    assert contrastive_loss(torch.cat([pictures, pictures.flip(3)])) < 0.1
    assert contrastive_loss(torch.cat([pictures, pictures.roll(1, 0)])) > 1


@pytest.mark.parametrize(("convs", "frozen"), [([1, 2, 1], set()), ([1, 1, 2], {"encoder.relu3_2"})])
def test_perceive_trains_every_measured_layer(convs, frozen):
    model = Perceptual(widths=[8, 12, 16], convs=convs, upsampling="bilinear", transform="covariance")
    OBJECTIVES["perceive"].freeze(model)
    figures = OBJECTIVES["perceive"].loss(model, torch.rand(4, 3, 24, 32), torch.Generator().manual_seed(0))
    figures["loss"].backward()
    unused_names = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert {name.rpartition(".")[0] for name in unused_names} == {"skips.0", "skips.1"} | frozen
    # With two workers, DDP waits for a gradient of every trainable weight.
    assert not any(model.get_parameter(name).requires_grad for name in unused_names)
