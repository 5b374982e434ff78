"""An image codec with a lapped transform and a learned decoder.

    x ── analysis g_a (linear, 16×16 every 8) ── / (step · step_c) ── round ── symbols ── · ── y_hat
    y_hat ─┬─ synthesis g_s (linear) ── x_base ─┬──────────────────────────(+)── x_hat
           └─ residual blocks at 1/8 ── shuffle ─┴─ residual blocks at 1/2 ─┘

The transform starts as the 8×8 DCT of Y, Cb and Cr that JPEG uses (all 64 luma coefficients, and the lowest of each chroma
plane), and is trained together with its quantiser steps. The encoder is linear and therefore fast, because it runs once for
each image of a bucket. Names follow Ballé et al. 2018 (g_a, g_s, y_hat).
"""

import math

import torch
from torch import Tensor, nn

from imagemill.models.autoencoder import LatentCoder
from imagemill.models.colour import YCBCR
from imagemill.models.layers import ResBlock, conv3x3, zero_init

SYMBOL_MAX = 127
DEAD_ZONE = 0.1
"""A coefficient is rounded up only if its fraction exceeds 0.5 + DEAD_ZONE, which saves bits."""
FINEST_STEP = 8.5
"""In 8-bit levels. With a finer step, the means of black and white blocks (±1020 levels) would exceed a symbol."""
PREVIEW_SIDE = 256
"""Latents with at least this many positions a side get a preview of one pixel for each position."""
# The transforms' weights are stored ten times too large, so that the constant step size of Adam changes the DCT slowly.
TRANSFORM_SCALE = 0.1


def zigzag_frequencies(block: int = 8) -> list[tuple[int, int]]:
    """Return the (vertical, horizontal) frequencies of a block, lowest first."""
    return sorted(((v, u) for v in range(block) for u in range(block)), key=lambda f: (sum(f), f))


def dct_filters(chroma: int, block: int = 8) -> tuple[Tensor, Tensor]:
    """Return analysis and synthesis filters (C,3,8,8) of the orthonormal block DCT-II of Y, Cb and Cr."""
    k, n = torch.arange(block).float().view(-1, 1), torch.arange(block).float()
    basis = torch.cos(math.pi * (n + 0.5) * k / block) * math.sqrt(2 / block)
    basis[0] /= math.sqrt(2)
    to_ycc = torch.tensor(YCBCR)
    to_rgb = torch.linalg.inv(to_ycc)
    analysis, synthesis = [], []
    for plane, count in enumerate((block * block, chroma, chroma)):
        for v, u in zigzag_frequencies(block)[:count]:
            patch = torch.outer(basis[v], basis[u])
            analysis.append(to_ycc[plane].view(3, 1, 1) * patch)
            synthesis.append(to_rgb[:, plane].view(3, 1, 1) * patch)
    return torch.stack(analysis), torch.stack(synthesis)


def quantise(y: Tensor) -> Tensor:
    """Round to integers with a dead zone, in float.

    The gradient is that of the identity (straight-through estimator, Theis et al. 2017) where the symbol is not 0, else 0. A
    small change of a coefficient that is quantised to 0 changes neither bits nor image; a gradient there would make steps
    shrink and latents dense. Changes at the edge of the dead zone are ignored: there, bits and error balance.
    """
    hard = y.sign().mul_(0.5 - DEAD_ZONE).add_(y).trunc_().clamp_(-SYMBOL_MAX, SYMBOL_MAX)
    if not torch.is_grad_enabled():
        return hard
    alive = y * (hard != 0)
    return alive + (hard - alive).detach()


def pad_replicate(x_BCHW: Tensor, n: int) -> Tensor:
    """Repeat the edges n times, in the channels-last layout, for which torch's replicate padding is three times slower."""
    b, c, h, w = x_BCHW.shape
    size = b, c, h + 2 * n, w + 2 * n
    out = torch.empty(size, dtype=x_BCHW.dtype, device=x_BCHW.device, memory_format=torch.channels_last)
    out[:, :, n:-n, n:-n] = x_BCHW
    out[:, :, :n, n:-n] = x_BCHW[:, :, :1]
    out[:, :, -n:, n:-n] = x_BCHW[:, :, -1:]
    out[..., :n] = out[..., n : n + 1]
    out[..., -n:] = out[..., -n - 1 : -n]
    return out


class Codec(LatentCoder):
    """A codec whose latents (B,C,H/8,W/8) are integers. One network serves all quantiser steps.

    The step is the base quantiser step in 8-bit levels, as in JPEG: a larger step gives fewer bits.

    Args:
        chroma: channels of the code for each of Cb and Cr; luma has 64.
        code_width: channels of the decoder at 1/8 of the size.
        code_blocks: residual blocks of the decoder at 1/8 of the size.
        width: channels of the decoder at half the size.
        blocks: residual blocks of the decoder at half the size.
    """

    stride = 8

    def __init__(
        self, chroma: int = 16, code_width: int = 96, code_blocks: int = 2, width: int = 48, blocks: int = 4
    ) -> None:
        super().__init__()
        self.code_channels = 64 + 2 * chroma
        # (First channel, count) of the mean and the lowest frequencies of Y, Cb and Cr.
        lowest = ((0, 20), (64, min(8, chroma)), (64 + chroma, min(8, chroma)))
        self.lowpass_channels = (0, 64, 64 + chroma)
        self.texture_channels = [c for first, count in lowest for c in range(first + 1, first + count)]
        # A convolution reaches 2 px at half the size and 8 px at an eighth; the lapped synthesis adds 8 px.
        self.halo = -(-(2 * (2 * blocks + 2) + 8 * (2 * code_blocks + 2)) // 8) * 8
        analysis, synthesis = dct_filters(chroma)
        self.g_a = nn.Conv2d(3, self.code_channels, 16, stride=8, bias=False)
        self.g_s = nn.ConvTranspose2d(self.code_channels, 3, 16, stride=8, padding=4, bias=False)
        with torch.no_grad():
            self.g_a.weight.copy_(nn.functional.pad(analysis, (4, 4, 4, 4)) / TRANSFORM_SCALE)
            self.g_s.weight.copy_(nn.functional.pad(synthesis, (4, 4, 4, 4)) / TRANSFORM_SCALE)
        self.log_step = nn.Parameter(torch.zeros(self.code_channels))
        self.code_head = nn.Conv2d(self.code_channels + 1, code_width, 1)
        self.code_body = nn.Sequential(*(ResBlock(code_width) for _ in range(code_blocks)))
        self.code_tail = nn.Sequential(nn.Conv2d(code_width, 256, 1), nn.PixelShuffle(4))
        self.head = conv3x3(16 + 12 + 1, width)
        self.body = nn.Sequential(*(ResBlock(width) for _ in range(blocks)))
        self.tail = zero_init(conv3x3(width, 12))

    def steps(self, step_B: Tensor) -> Tensor:
        """Return the quantiser step of each channel, (B,C,1,1), for coefficients of images in [0,1]."""
        return (step_B.view(-1, 1, 1, 1) * self.log_step.exp().view(1, -1, 1, 1)).clamp(min=FINEST_STEP) / 255

    def analyse(self, x_B3HW: Tensor, step_B: Tensor) -> Tensor:
        """Map images (B,3,H,W) in [0,1] to unrounded symbols (B,C,H/8,W/8), in float32 because bfloat16 changes symbols."""
        x = pad_replicate((x_B3HW.float() - 0.5).mul_(TRANSFORM_SCALE), 4)
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.g_a(x) / self.steps(step_B)
        return y

    def encode(self, x_BCHW: Tensor, step_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images (B,3,H,W) in [0,1] to symbols (B,C,H/8,W/8) and their step (B,), 26 by default."""
        step_B = x_BCHW.new_full((x_BCHW.shape[0],), 26.0) if step_B is None else step_B
        return quantise(self.analyse(x_BCHW, step_B)), step_B

    def encode_symbols(self, x_BCHW: Tensor, step_B: Tensor) -> Tensor:
        """Map images (B,3,H,W) in [0,1] to symbols (B,C,H/8,W/8)."""
        return self.encode(x_BCHW, step_B)[0]

    def decode_symbols(self, symbols_Bchw: Tensor, step_B: Tensor) -> Tensor:
        """Map symbols and their step to images (B,3,H,W), not clipped."""
        return self.decode((symbols_Bchw, step_B))

    def dequantisation(self, step: float) -> tuple[Tensor, int]:
        """Return the step of each channel, (C,), and 0, the symbol of the value 0."""
        return self.steps(self.log_step.new_tensor([step])).flatten(), 0

    def decode_preview(self, values_Bchw: Tensor) -> Tensor:
        """Apply only the linear synthesis, or for large latents only the means, one pixel for each position."""
        if min(values_Bchw.shape[2:]) < PREVIEW_SIDE:
            return self.g_s(values_Bchw * TRANSFORM_SCALE) + 0.5
        means = self.g_s.weight[list(self.lowpass_channels)].sum((2, 3)) * (TRANSFORM_SCALE / 64)
        return torch.einsum("bchw,cp->bphw", values_Bchw[:, list(self.lowpass_channels)], means) + 0.5

    def decode(self, y: tuple[Tensor, Tensor]) -> Tensor:
        """Map symbols and their step to images (B,3,H,W), not clipped."""
        symbols, step_B = y
        y_hat = symbols * self.steps(step_B)
        with torch.autocast(y_hat.device.type, enabled=False):
            x_base: Tensor = self.g_s(y_hat * TRANSFORM_SCALE) + 0.5
        # The network sees log2(step / 32); steps are 18 to 128 in training.
        level = (step_B.log2() - 5.0).view(-1, 1, 1, 1)
        code = torch.cat([symbols * 0.25, level.expand(-1, 1, *symbols.shape[2:])], 1)
        code = self.code_tail(self.code_body(self.code_head(code)))
        base = nn.functional.pixel_unshuffle(x_base - 0.5, 2)
        z = self.head(torch.cat([code, base, level.expand(-1, 1, *base.shape[2:])], 1))
        return x_base + nn.functional.pixel_shuffle(self.tail(self.body(z)), 2).to(x_base.dtype)
