import numpy as np
import pytest

from imagemill.models.metrics import MS_SSIM_SIDE, SSIM_SIDE, checkerboard, ms_ssim, psnr_db, ssim


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (MS_SSIM_SIDE, MS_SSIM_SIDE + 7, 3)).astype(np.uint8)


def test_psnr_of_known_errors():
    black = np.zeros((600, 5, 3), np.uint8)
    assert psnr_db(black, black) == float("inf")
    assert psnr_db(black, black + 255) == 0
    assert psnr_db(black, black + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr_db(black[0], black[0] + 1) == pytest.approx(48.1308, abs=1e-4)


def test_ssim_is_1_for_equal_images(photo):
    noisy = (photo * 0.8).round().astype(np.uint8)
    for measure, side in ((ssim, SSIM_SIDE), (ms_ssim, MS_SSIM_SIDE)):
        smallest = photo[:side, :side]
        assert measure(smallest, smallest) == pytest.approx(1, abs=1e-5)
        assert measure(photo, noisy) < 0.999
    with pytest.raises(ValueError, match="160"):
        ms_ssim(photo[: MS_SSIM_SIDE - 1], photo[: MS_SSIM_SIDE - 1])


def test_ssim_of_flat_images_compares_luminance():
    a, b = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-3)


@pytest.mark.parametrize("period", [2, 4])
def test_checkerboard_of_known_patterns(period):
    y, x = np.mgrid[:28, :28]
    board = ((x // (period // 2) + y // (period // 2)) % 2)[None].astype(float)
    assert checkerboard(board, period) == pytest.approx(1)
    stripes = (x % period == 0)[None].astype(float)
    assert checkerboard(stripes, period) == pytest.approx(1)
    smooth = np.cos(2 * np.pi * x / 28)[None]
    assert checkerboard(smooth, period) == pytest.approx(0, abs=1e-12)
    # Two patterns of equal power at two frequencies each contribute half of the power of their sum.
    pattern_sum = smooth * np.sqrt(2) + (board * 2 - 1)
    assert checkerboard(pattern_sum, period) == pytest.approx(0.5)
    assert checkerboard(np.zeros((1, 28, 28)), period) == 0


@pytest.mark.parametrize("period", [2, 4])
def test_checkerboard_of_white_noise(period):
    noise = np.random.default_rng(0).normal(size=(4000, 28, 28))
    assert checkerboard(noise, period) == pytest.approx((period**2 - 1) / (28 * 28 - 1), rel=0.05)


def test_checkerboard_equals_power_in_the_spectrum():
    x = np.random.default_rng(1).normal(size=(3, 12, 20))
    power = np.square(np.abs(np.fft.fft2(x)))
    power[:, 0, 0] = 0
    assert checkerboard(x, 4) == pytest.approx(power[:, ::3, ::5].sum() / power.sum())
