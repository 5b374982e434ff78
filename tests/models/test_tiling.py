from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.architectures.codec import Codec
from imagemill.models.architectures.unet import UNet
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import to_uint8_batch
from imagemill.models.tiling import apply_tiled

TILE = 64


def random_model(name: str) -> Autoencoder:
    """Return a network without zero weights, because zero layers would hide their receptive field."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval().requires_grad_(False)


def image(model: Autoencoder, h: int, w: int) -> Tensor:
    channels = model.example[0]
    return torch.rand(1, channels, h, w, generator=torch.Generator().manual_seed(1))


def image_to_image(model: Autoencoder) -> Callable[[Tensor], Tensor]:
    # The noise level is a mean over the whole image, so the task estimates it once before tiling.
    if isinstance(model, UNet):
        return lambda x: model(x, x.new_full((x.shape[0],), 0.1))
    return model


def reaches_no_further_than(fn: Callable[[Tensor], Tensor], x: Tensor, halo: int, tile: int, scale: Fraction) -> bool:
    """Return whether the middle tile ignores all inputs outside its halo, where a NaN would spread."""
    h, w = x.shape[2:]
    y, x0 = (h // 2) // tile * tile, (w // 2) // tile * tile
    assert min(y, x0, h - y - tile, w - x0 - tile) > halo
    poisoned_input = torch.full_like(x, float("nan"))
    window = (..., slice(y - halo, y + tile + halo), slice(x0 - halo, x0 + tile + halo))
    poisoned_input[window] = x[window]
    # Use plain convolutions, because faster algorithms transform blocks and spread a NaN over a block.
    with torch.backends.mkldnn.flags(enabled=False):
        out = fn(poisoned_input)
    assert out.isnan().any()
    tile_output = out[..., int(y * scale) : int((y + tile) * scale), int(x0 * scale) : int((x0 + tile) * scale)]
    return not bool(tile_output.isnan().any())


@given(st.integers(1, 70), st.integers(1, 70), st.integers(4, 30), st.integers(2, 6), st.integers(1, 2))
@settings(max_examples=30)
def test_tiled_network_equals_whole_network(h: int, w: int, tile: int, halo: int, batch: int) -> None:
    torch.manual_seed(h * 71 + w)
    net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))
    x = torch.randn(batch, 2, h, w)
    with torch.inference_mode():
        torch.testing.assert_close(apply_tiled(net, x, tile, halo), net(x), atol=1e-5, rtol=0)


@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([16, 32, 64]),
    st.integers(0, 8),
    st.sets(st.integers(0, 40), max_size=4),
)
@settings(max_examples=60)
def test_tiled_in_place_equals_tiled(h: int, w: int, tile: int, halos: int, short: set[int]) -> None:
    halo, calls = 4 * halos, []
    x = torch.randint(0, 256, (1, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(h * 151 + w))

    def fn(piece: Tensor) -> Tensor:
        calls.append(piece.shape)
        if len(calls) in short and max(piece.shape[2:]) > 16 + 2 * halo:
            torch.empty(2**60)
        padded_piece = nn.functional.pad(piece.float(), (halo, halo, halo, halo))
        return (sum(padded_piece.roll(shift, 2) + padded_piece.roll(shift, 3) for shift in (-halo, halo)) % 251)[
            :, :, halo : -halo or None, halo : -halo or None
        ].to(torch.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagemill.models.tiling.MIN_TILE", 8)
        separate_output = apply_tiled(fn, x, tile, halo, stride=4)[:, :, :h, :w]
        calls.clear()
        in_place_output = apply_tiled(fn, x, tile, halo, stride=4, in_place=True)[:, :, :h, :w]
    torch.testing.assert_close(in_place_output, separate_output, atol=0, rtol=0)


def test_too_small_halo_changes_the_result() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    x = torch.rand(1, 1, 40, 40)
    with torch.inference_mode():
        assert not torch.allclose(apply_tiled(net, x, 8, 1), net(x), atol=1e-5)
        assert torch.allclose(apply_tiled(net, x, 8, 2), net(x), atol=1e-5)
    assert reaches_no_further_than(net, x, 2, 8, Fraction(1))
    assert not reaches_no_further_than(net, x, 1, 8, Fraction(1))


def test_tile_size_bounds_memory() -> None:
    sizes = []

    def fn(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        return x

    x = torch.rand(1, 1, 100, 150)
    torch.testing.assert_close(apply_tiled(fn, x, 16, 4), x)
    assert max(max(s) for s in sizes) <= 16 + 2 * 4
    assert len(sizes) == 7 * 10


@pytest.mark.parametrize(
    ("scale", "large"), [(Fraction(1), False), (Fraction(1, 8), False), (Fraction(2), False), (Fraction(8), True)]
)
def test_large_results_release_memory_between_rows(scale, large, monkeypatch) -> None:
    releases = []
    monkeypatch.setattr("imagemill.models.tiling.LARGE_PIXELS", 100 * 150 * 8)
    monkeypatch.setattr("imagemill.models.tiling.release_free_memory", lambda: releases.append(True))
    x = torch.rand(1, 1, 96, 144)

    def fn(piece: Tensor) -> Tensor:
        return piece.new_zeros(1, 1, *(int(n * scale) for n in piece.shape[2:]))

    apply_tiled(fn, x, 16, 0, scale)
    assert len(releases) == (6 if large else 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_halo_and_tile_are_multiples_of_stride(name: str) -> None:
    model = ARCHITECTURES[name]()
    assert model.stride > 0
    assert model.halo % model.stride == 0
    assert 1024 % model.stride == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tiled_architecture_equals_whole_architecture(name: str) -> None:
    model = random_model(name)
    fn = image_to_image(model)
    # One axis is longer than a tile with its halos; the other is a tile and a remainder.
    x = image(model, 2 * TILE + 2 * model.halo, TILE + 3 * model.stride)
    with torch.inference_mode():
        full_output = fn(x)
        assert full_output.std() > 0.01
        torch.testing.assert_close(
            apply_tiled(fn, x, TILE, model.halo, Fraction(model.scale)),
            full_output,
            atol=1e-5 * max(1.0, float(full_output.abs().max())),
            rtol=0,
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_halo_covers_the_receptive_field(name: str) -> None:
    model = random_model(name)
    tile = model.stride
    side = 2 * (-(-(model.halo + model.stride) // tile) + 1) * tile
    with torch.inference_mode():
        x = image(model, side, side)
        assert reaches_no_further_than(image_to_image(model), x, model.halo, tile, Fraction(model.scale))


def test_codec_encoder_depends_on_one_stride() -> None:
    model = random_model("codec")
    assert isinstance(model, Codec)
    x = image(model, 200, 264)
    step = torch.tensor([20.0])
    scale = Fraction(1, model.stride)
    with torch.inference_mode():
        full_output = model.analyse(x, step)
        assert full_output.abs().max() > 1
        in_tiles = apply_tiled(lambda piece: model.analyse(piece, step), x, TILE, model.stride, scale)
        torch.testing.assert_close(in_tiles, full_output, atol=1e-4, rtol=1e-5)
        symbols = apply_tiled(lambda piece: model.encode(piece, step)[0], x, TILE, model.stride, scale)
        assert (symbols != model.encode(x, step)[0]).float().mean() < 1e-4
        assert reaches_no_further_than(lambda piece: model.analyse(piece, step), x, model.stride, 8, scale)


def test_codec_decoder_depends_on_its_halo() -> None:
    model = random_model("codec")
    assert isinstance(model, Codec)
    halo = model.halo // model.stride
    step = torch.tensor([20.0])
    side = 8 + 2 * halo + 5
    symbols = torch.randint(
        -9, 10, (1, model.code_channels, side, side + 3), generator=torch.Generator().manual_seed(2)
    ).float()
    scale = Fraction(model.stride)
    with torch.inference_mode():
        full_output = model.decode((symbols, step))
        in_tiles = apply_tiled(lambda piece: model.decode((piece, step)), symbols, 8, halo, scale)
        torch.testing.assert_close(in_tiles, full_output, atol=1e-5 * float(full_output.abs().max()), rtol=0)
        assert reaches_no_further_than(lambda piece: model.decode((piece, step)), symbols, halo, 1, scale)


def test_only_tiles_out_of_memory_are_split() -> None:
    x, accepted_sizes, refused_sizes = torch.rand(1, 3, 300, 500, generator=torch.Generator().manual_seed(0)), [], []

    def blur(piece: Tensor) -> Tensor:
        size = tuple(piece.shape[2:])
        if size[0] * size[1] > 100 * 100:
            refused_sizes.append(size)
            # Request more memory than any machine has, so that the allocator itself raises the error.
            torch.empty(2**60)
        accepted_sizes.append(size)
        return nn.functional.avg_pool2d(piece, 3, 1, 1, count_include_pad=False)

    assert torch.allclose(apply_tiled(blur, x, 256, 8), nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    # No tile of 256×256 or 128×128 with its halo fits; in the strip of 44 rows below, tiles 128 wide fit.
    tile_sizes, strip_sizes = (
        [size for size in accepted_sizes if size[0] != 52],
        [size for size in accepted_sizes if size[0] == 52],
    )
    assert len(tile_sizes) == 32
    assert max(max(size) for size in tile_sizes) == 64 + 2 * 8
    assert len(strip_sizes) == 4
    assert max(strip_sizes) == (52, 128 + 2 * 8)
    assert len(refused_sizes) == 2 * (1 + 4) + 2
    with pytest.raises(RuntimeError, match="no matter what"):
        apply_tiled(lambda piece: fail("no matter what"), x, 256, 8)


def fail(message: str) -> Tensor:
    raise RuntimeError(message)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3))
@example(64, 64, 1)
@example(65, 1, 2)
def test_single_image_is_padded_by_tile(h, w, count):
    images = [np.random.default_rng(n).integers(0, 256, (h, w, 3), dtype=np.uint8) for n in range(count)]
    padded_batch = to_uint8_batch([*images, images[0]], 8, "cpu")[:count]
    single_batch = to_uint8_batch(images, 8, "cpu")
    blur = nn.Conv2d(3, 3, 9, padding=4, padding_mode="replicate")
    for x in (padded_batch, single_batch):
        assert x.stride(1) == 1

    def fn(piece):
        assert piece.shape[2] % 8 == piece.shape[3] % 8 == 0
        return blur(piece.float()).detach()

    expected = apply_tiled(fn, padded_batch, 16, 8)
    torch.testing.assert_close(apply_tiled(fn, single_batch, 16, 8, stride=8), expected, atol=0, rtol=0)
    assert expected.shape[2:] == padded_batch.shape[2:]
    smaller = apply_tiled(lambda piece: piece[:, :, ::8, ::8], single_batch, 16, 8, Fraction(1, 8), 8)
    torch.testing.assert_close(smaller, padded_batch[:, :, ::8, ::8])
