import numpy as np
import pytest
import torch

from imagemill.models.architectures.unet import UNet
from imagemill.models.objectives.denoise import Denoise
from imagemill.models.photo_noise import MID_GRAY, add_sensor_noise, compress_as_jpeg

GRAY = MID_GRAY ** (1 / 2.2)


def flat(value, batch=8):
    return torch.full((batch, 3, 64, 64), value)


def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("sigma", [5, 15])
def test_sensor_noise_has_its_level_at_mid_gray(sigma):
    noisy = add_sensor_noise(flat(GRAY), torch.full((8,), sigma / 255), generator())
    assert noisy.std() * 255 == pytest.approx(sigma, rel=0.1)
    assert noisy.mean() == pytest.approx(GRAY, abs=0.01)


def test_sensor_noise_grows_with_light():
    """In linear light; the curve of sRGB compresses bright values."""
    linear = [add_sensor_noise(flat(v), torch.full((8,), 10 / 255), generator()) ** 2.2 for v in (0.2, 0.5, 0.8)]
    deviations = [float(x.std()) for x in linear]
    assert deviations == sorted(deviations)
    assert deviations[2] > 1.5 * deviations[0]


def test_sensor_noise_of_neighbours_is_correlated():
    noise = add_sensor_noise(flat(GRAY, 64), torch.full((64,), 10 / 255), generator()) - GRAY
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())
    distant = float((noise[..., 5:] * noise[..., :-5]).mean() / noise.square().mean())
    assert neighbours > 0.1
    assert abs(distant) < 0.02


def test_jpeg_changes_the_share_that_it_compresses(crops):
    x = torch.from_numpy(np.stack([crops[0][:64, :64]] * 16)).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(compress_as_jpeg(x, generator(), share=0), x)
    changed = (compress_as_jpeg(x, generator(), share=1) != x).flatten(1).any(1)
    assert changed.all()


def test_photo_network_learns_the_size_of_what_was_added(crops):
    """The loss compares the estimated level with the noise after JPEG, and every random number comes from the generator."""
    torch.manual_seed(0)
    model = UNet(widths=(8, 8), blocks=1, noise="photo")
    x = torch.from_numpy(crops[0][None, :64, :64].copy()).permute(0, 3, 1, 2).float() / 255
    losses = [Denoise().loss(model, x, generator()) for _ in range(2)]
    assert losses[0]["loss"] == losses[1]["loss"]
    losses[0]["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert Denoise().loss(UNet(widths=(8, 8), blocks=1), x, generator())["psnr_db"] != losses[0]["psnr_db"]


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="noise='rain': must be gaussian or photo"):
        UNet(noise="rain")
