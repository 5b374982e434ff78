"""Entropy coding of integer latents with a context model, bit-exact on every machine.

    for each channel, for each pass over its positions:
        sums of coded symbols ─┬─ expected magnitude ── bucket ──┐
                               ├─ expected value ────── phase  ──┼─ row of `tables` ── range coder
        largest neighbour ─────┴─────────────────────── level  ──┘

The expected value and magnitude of a symbol are linear in the symbols that were coded before it: the known neighbours in its
channel, and the nine positions around it in earlier channels. A sum cannot tell one large neighbour from many small ones, so
the magnitude of the largest known neighbour also counts. A channel is coded in four passes, so that each pass is one
array operation and most symbols have known neighbours on all sides. Every number that influences a bit is an integer of
the checkpoint. Sums are computed in float32, where integers below 2^24 are exact in any order, so that all machines agree.
"""

from collections.abc import Callable
from functools import cached_property

import constriction
import numpy as np
import torch
from torch import Tensor, nn

PASSES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""(vertical, horizontal) position in each 2×2 square that a pass codes."""
KNOWN_NEIGHBOURS = ((), (0, 2, 6, 8), (1, 3, 5, 7), (0, 1, 2, 3, 5, 6, 7, 8))
"""Positions of the 3×3 neighbourhood that are known in the symbol's own channel, for each pass."""
FRACTION_BITS = 10
"""Weights are multiples of 1/1024."""
PHASES = 8
"""Steps between two integers in which the expected value is rounded."""
REACH = 20
"""Largest distance from the centre that has its own count; the excess of larger distances is coded as a byte."""
TOTAL = 1 << 20
"""Sum of each row of `tables`."""
EXACT_LIMIT = 1 << 24
"""Integers below this are exact in float32."""
TILE = 128
"""Side of the squares that are coded independently, which bounds memory; 1024 pixels for the codec."""

Exchange = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Codes symbols: (rows of `tables` (n,), centres (n,), symbols (n,) with the expected sign) to the symbols."""

_family, _byte = constriction.stream.model.Categorical(perfect=False), constriction.stream.model.Uniform(256)


class PayloadError(Exception):
    """A payload was not written with these tables, or is damaged."""


class EntropyModel(nn.Module):
    """The integer tables of the context model for latents with C channels.

    Args:
        sizes: (129,) int16, the contribution of the magnitudes 0..128 to an expected magnitude.
        weights: (2,4,C·(C+1)/2,9) int16 in 1/1024, for magnitude and value, each pass, each pair of a channel and a known
            one (in the order of `numpy.tril_indices`), and the 3×3 neighbourhood, row by row.
        bias: (4,C) int32 in 1/1024, of the expected magnitude.
        edges: (S-1,) int32 in 1/1024, ascending: the boundaries between the S buckets of expected magnitudes.
        tables: (S·L·2·8,41) int32, counts of the distances -20..20 from the centre, for each bucket, level, centre zero or
            not, and phase of the expected value.
        levels: (S,L-1) int16, ascending: for each bucket, the boundaries between the L levels of the largest magnitude of
            the known neighbours. None for one level, in checkpoints of older versions.

    Raises:
        ValueError: when the tables are invalid.
    """

    sizes: Tensor
    weights: Tensor
    bias: Tensor
    edges: Tensor
    tables: Tensor
    levels: Tensor | None

    def __init__(
        self, sizes: Tensor, weights: Tensor, bias: Tensor, edges: Tensor, tables: Tensor, levels: Tensor | None = None
    ) -> None:
        super().__init__()
        values = {"sizes": sizes, "weights": weights, "bias": bias, "edges": edges, "tables": tables, "levels": levels}
        for name, value in values.items():
            if value is not None and value.is_floating_point():
                raise ValueError(f"entropy.{name}: dtype {value.dtype}, but must be an integer type")
            self.register_buffer(name, value)
        self._check()

    def _check(self) -> None:
        """Check shapes and ranges, so that no sum can exceed the exact integers of float32."""
        channels, buckets = self.bias.shape[1], len(self.edges) + 1
        levels = 1 if self.levels is None else self.levels.shape[-1] + 1
        shapes = {
            "sizes": (129,),
            "weights": (2, len(PASSES), channels * (channels + 1) // 2, 9),
            "bias": (len(PASSES), channels),
            "tables": (buckets * levels * 2 * PHASES, 2 * REACH + 1),
        } | ({"levels": (buckets, levels - 1)} if self.levels is not None else {})
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"entropy.{name}: shape {tuple(getattr(self, name).shape)}, but must be {shape}")
        if bool((self.tables < 1).any()) or bool((self.tables.sum(1) != TOTAL).any()):
            raise ValueError(f"entropy.tables: counts must be positive and each row must sum to {TOTAL}")
        if bool((self.edges.diff() < 0).any()) or int(self.edges.abs().max()) >= EXACT_LIMIT:
            raise ValueError("entropy.edges: must ascend and be exact in float32")
        if self.levels is not None and (
            bool((self.levels.diff() < 0).any()) or bool((self.levels.int().abs() >= EXACT_LIMIT).any())
        ):
            raise ValueError("entropy.levels: must ascend and be exact in float32")
        largest = torch.tensor([int(self.sizes.abs().max()), 128])
        reach = np.abs(self._dense).sum((2, 4), dtype=np.float64) * largest.view(2, 1, 1).numpy()
        if (reach[0] + self.bias.abs().numpy() >= EXACT_LIMIT).any() or (reach[1] >= EXACT_LIMIT).any():
            raise ValueError("entropy.weights: sums can exceed 2^24")

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.bias.shape[1]

    @cached_property
    def _dense(self) -> np.ndarray:
        """Weights (2,4,C,C,9) float32, indexed by the known channel, then the expected channel."""
        known, expected = np.tril_indices(self.channels)[::-1]
        dense = np.zeros((2, len(PASSES), self.channels, self.channels, 9), np.float32)
        dense[:, :, known, expected] = self.weights.cpu().numpy()
        return dense

    @cached_property
    def _probabilities(self) -> np.ndarray:
        """Probabilities (rows,41) float32, exact because counts have at most 21 bits and TOTAL is a power of two."""
        return self.tables.cpu().numpy().astype(np.float32) / TOTAL

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sizes, bias and edges as float32."""
        return tuple(t.cpu().numpy().astype(np.float32) for t in (self.sizes, self.bias, self.edges))  # type: ignore[return-value]

    @cached_property
    def _contexts(self) -> np.ndarray:
        """Bucket and level as one number, (S,M): of each bucket and magnitude of the largest neighbour, 0..M-1."""
        buckets = np.arange(len(self.edges) + 1)[:, None]
        if self.levels is None:
            return np.repeat(buckets, max(0, int(self.sizes.max())) + 1, 1)
        magnitudes = np.arange(max(0, int(self.sizes.max())) + 1)
        boundaries = self.levels.cpu().numpy()
        return buckets * (boundaries.shape[1] + 1) + (magnitudes[:, None] > boundaries[:, None]).sum(2)

    def encode(self, symbols: np.ndarray) -> bytes:
        """Encode symbols (C,h,w) int8 to a payload of 32-bit words in little-endian order."""
        encoder = constriction.stream.queue.RangeEncoder()

        def exchange(rows: np.ndarray, centres: np.ndarray, expected: np.ndarray) -> np.ndarray:
            distance = expected - centres
            near = distance.clip(-REACH, REACH)
            encoder.encode(near + REACH, _family, self._probabilities[rows])
            far = np.abs(distance[np.abs(near) == REACH]) - REACH
            if far.size:
                encoder.encode(far, _byte)
            return expected

        self.walk(symbols.astype(np.int16), exchange)
        return encoder.get_compressed().astype("<u4").tobytes()

    def decode(self, payload: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        """Decode a payload to symbols (C,h,w) int8 of the given shape.

        Damage is often not detected here, so callers compare a checksum of the symbols.

        Raises:
            PayloadError: when the payload cannot be of this shape and these tables.
        """
        if len(payload) % 4 or shape[0] != self.channels:
            raise PayloadError(f"payload of {len(payload)} bytes: cannot be of shape {shape} with {self.channels} channels")
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))

        def exchange(rows: np.ndarray, centres: np.ndarray, _: np.ndarray) -> np.ndarray:
            near: np.ndarray = decoder.decode(_family, self._probabilities[rows]) - REACH
            far = np.abs(near) == REACH
            if far.any():
                near[far] += np.sign(near[far]) * decoder.decode(_byte, int(far.sum()))
            return near + centres

        symbols = np.zeros(shape, np.int16)
        try:
            self.walk(symbols, exchange)
        except AssertionError as e:  # constriction raises this for bits that its models cannot have written
            raise PayloadError("the payload was not made with these tables") from e
        if np.abs(symbols).max(initial=0) > 128 or not decoder.maybe_exhausted():
            raise PayloadError("the payload was not made with these tables")
        return symbols.astype(np.int8)

    def walk(self, symbols: np.ndarray, exchange: Exchange) -> None:
        """Pass symbols (C,h,w) int16 to `exchange` in coding order; its results replace the symbols."""
        _, height, width = symbols.shape
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                self._walk_tile(symbols[:, y : y + TILE, x : x + TILE], exchange)

    def _walk_tile(self, symbols: np.ndarray, exchange: Exchange) -> None:
        sizes, bias, _ = self._numbers
        # Known symbols of the current channel, as terms of magnitude and value; unknown positions are 0.
        known = np.zeros((2, symbols.shape[1] + 2, symbols.shape[2] + 2), np.float32)
        around = np.lib.stride_tricks.sliding_window_view(known, (3, 3), (1, 2))
        visits = [(p, dy, dx) for p, (dy, dx) in enumerate(PASSES) if symbols[0, dy::2, dx::2].size]
        windows = {p: around[:, dy::2, dx::2] for p, dy, dx in visits}
        sums = {p: np.zeros((2, self.channels, w.shape[1] * w.shape[2]), np.float32) for p, w in windows.items()}
        for p, total in sums.items():
            total[0] += bias[p][:, None]
        for channel, plane in enumerate(symbols):
            known[:] = 0
            for p, dy, dx in visits:
                here = plane[dy::2, dx::2]
                own = windows[p].reshape(2, -1, 9) @ self._dense[:, p, channel, channel, :, None]
                rows, centres, signs = self._expect(sums[p][:, channel] + own[..., 0], largest_around(known[0], dy, dx))
                here[:] = (exchange(rows, centres, here.ravel() * signs) * signs).reshape(here.shape)
                known[0, dy + 1 : -1 : 2, dx + 1 : -1 : 2] = sizes[np.abs(here).clip(max=128)]
                known[1, dy + 1 : -1 : 2, dx + 1 : -1 : 2] = here.clip(-128, 127)
            if known.any():
                for p, window in windows.items():
                    later = self._dense[:, p, channel, channel + 1 :]
                    sums[p][:, channel + 1 :] += later @ window.reshape(2, -1, 9).transpose(0, 2, 1)

    def _expect(self, sums: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the tables of symbols.

        Args:
            sums: (2,n) float32 in 1/1024, expected magnitude and value.
            largest: (n,) integers, magnitude of the largest known neighbour in the channel, 0 if none is known.

        Returns:
            Rows of `tables`, centres ≥ 0, and the signs (±1) that make expected values positive, each (n,).
        """
        bucket = np.searchsorted(self._numbers[2], sums[0], "right")
        context = self._contexts[bucket, largest]
        mean = sums[1].astype(np.int32)
        shift = FRACTION_BITS - (PHASES.bit_length() - 1)
        eighths = np.minimum((np.abs(mean) + (1 << (shift - 1))) >> shift, 128 * PHASES)
        centres = (eighths + PHASES // 2) // PHASES
        phase = eighths - PHASES * centres + PHASES // 2
        rows = (context * 2 + (centres > 0)) * PHASES + phase
        return rows, centres, np.where(mean < 0, -1, 1).astype(np.int32)


def largest_around(magnitudes: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Return the largest magnitude in the 3×3 neighbourhoods of the positions of a pass, (n,) integers.

    Args:
        magnitudes: (h+2,w+2) float32, with a border.
        dy: first row of the pass.
        dx: first column of the pass.
    """
    row, right = magnitudes.shape[0] - 2, magnitudes.shape[1] - 2
    three = np.maximum(magnitudes[:, dx:right:2], magnitudes[:, dx + 1 : right + 1 : 2])
    three = np.maximum(three, magnitudes[:, dx + 2 :: 2])
    nine = np.maximum(three[dy:row:2], three[dy + 1 : row + 1 : 2])
    whole: np.ndarray = np.maximum(nine, three[dy + 2 :: 2]).ravel().astype(np.intp)
    return whole
