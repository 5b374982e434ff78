import torch

from imagemill.models.guided_filter import enlarge_guided
from imagemill.models.resizing import resize


def test_enlarge_guided_keeps_constant_maps() -> None:
    maps = torch.tensor([0.1, -0.3]).view(1, 2, 1, 1).expand(1, 2, 20, 24)
    enlarged = enlarge_guided(maps, torch.rand(1, 1, 20, 24), torch.rand(1, 1, 61, 70))
    torch.testing.assert_close(enlarged, maps[..., :1, :1].expand(1, 2, 61, 70), atol=1e-5, rtol=0)


def test_enlarge_guided_follows_edges_of_the_guide() -> None:
    """A map that is blurred along an edge of the guide becomes sharper there than a bilinear enlargement."""
    guide = torch.full((1, 1, 384, 384), 0.2)
    guide[..., 160:] = 0.8
    truth = torch.cat([torch.where(guide > 0.5, 0.2, -0.1), torch.where(guide > 0.5, -0.2, 0.0)], 1)
    small = resize(truth, [128, 128])
    bilinear = resize(small, [384, 384])
    guided = enlarge_guided(small, resize(guide, [128, 128]), guide)
    assert (guided - truth).abs().mean() < 0.5 * (bilinear - truth).abs().mean()
