import numpy as np
import pytest
import torch

from imagemill.models.style_texture import add_texture, blur, make_periodic, measure_texture, repeat
from imagemill.models.style_transport import build_transport, covariance, symmetric_power


def test_transport_has_the_covariance_of_the_style():
    generator = torch.Generator().manual_seed(0)
    mix = torch.eye(3) + 0.4 * torch.randn(2, 3, 3, generator=generator)
    content = (mix @ torch.randn(2, 3, 400, generator=generator)).view(2, 3, 20, 20)
    style_mean, style_covariance = covariance(torch.rand(1, 3, 9, 9, generator=generator) ** 2)
    root = symmetric_power(style_covariance, 0.5)
    transport = build_transport(content, style_mean, root)
    mean, actual = covariance(transport(content))
    torch.testing.assert_close(mean, style_mean.expand_as(mean), atol=1e-3, rtol=1e-3)
    # Not exact, because the ridge limits how much faint variations are amplified.
    assert (actual - style_covariance).norm() < 0.1 * style_covariance.norm()
    # The map of a style to itself changes nothing.
    own_mean, own_covariance = covariance(content)
    same = build_transport(content, own_mean, symmetric_power(own_covariance, 0.5))
    assert (same(content) - content).norm() < 0.02 * content.norm()
    # Of two content images, each has its own map.
    assert not torch.allclose(transport.matrix[0], transport.matrix[1], atol=0.01)


def test_added_texture_has_the_colours_and_the_detail_of_the_style():
    generator = torch.Generator().manual_seed(0)
    style = torch.tensor([0.8, 0.5, 0.2]).view(1, 3, 1, 1) + 0.1 * torch.randn(1, 3, 96, 128, generator=generator)
    texture = measure_texture([style], [1.0])
    ramp = torch.linspace(0, 1, 256).expand(2, 3, 256, 256)
    x = torch.cat([ramp[..., :128], ramp[..., :128] + 0.4 * torch.randn(2, 3, 256, 128, generator=generator)], 3)
    result = add_texture(x, texture, [(3, 5), (70, 90)], 1.0)
    assert torch.allclose(result.mean((2, 3)), style.mean((2, 3)).expand(2, 3), atol=0.02)
    # The smooth half has the energy of the style's detail, and the noisy half nothing of it.
    detail = (result - blur(result))[..., 20:100]
    assert detail.std().item() == pytest.approx(0.1, rel=0.15)
    other_place = add_texture(x, texture, [(40, 5), (70, 90)], 1.0)
    assert (other_place - result)[0, ..., 20:100].std() > 0.1
    assert (other_place - result)[0, ..., 160:].abs().max() < 0.02
    assert torch.equal(other_place[1], result[1])
    assert torch.equal(add_texture(x, texture, [(3, 5), (70, 90)], 0.0), x)


def test_repeated_detail_has_no_seam():
    rows, columns = np.indices((200, 160))
    wave = torch.from_numpy(np.sin(rows / 9) + np.cos(columns / 7)).float()[None, None]
    periodic = repeat(make_periodic(wave), range(400), range(400))
    assert periodic.shape == (1, 1, 400, 400)
    steps = [periodic.diff(dim=axis).abs().max() for axis in (2, 3)]
    assert max(steps) < 2 * max(wave.diff(dim=axis).abs().max() for axis in (2, 3))
