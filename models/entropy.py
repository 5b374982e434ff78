"""Entropy coding of integer latents with contexts, exact on every machine.

    for each channel, for each pass over its positions:
        sums of what is coded already ─┬─ size of the symbol ── bucket ──┐
                                       └─ mean of the symbol ── phase  ──┴─ row of `tables` ── range coder

What is expected of a symbol is linear in the symbols that were coded before it: its neighbours in its own channel, and all
nine positions around it in the channels before. A channel goes in four passes, so that each is one array operation and most
symbols have neighbours on every side. All that decides a bit is an integer from the checkpoint; sums are taken in float32,
where whole numbers below 2^24 are exact in any order, so threads, processes and machines agree.
"""

from collections.abc import Callable
from functools import cached_property

import constriction
import numpy as np
import torch
from torch import Tensor, nn

PASSES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""(vertical, horizontal) place in each 2×2 square of positions that a pass codes."""
KNOWN_NEIGHBOURS = ((), (0, 2, 6, 8), (1, 3, 5, 7), (0, 1, 2, 3, 5, 6, 7, 8))
"""Which of the nine positions around a symbol its own channel holds already, for each pass."""
FRACTION_BITS = 10
"""Weights are in 1/1024."""
PHASES = 8
"""Steps in which a mean is known."""
REACH = 20
"""Distances from the mean that have a count of their own; from this one on the rest follows as a byte."""
TOTAL = 1 << 20
"""Sum of the counts of a row of `tables`."""
EXACT_LIMIT = 1 << 24
"""Whole numbers below this are exact in float32, and so are their sums."""
TILE = 128
"""Side of the squares of positions that are coded by themselves: bounds memory, 1024 pixels of the codec."""

Exchange = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(rows of `tables` (n,), centres (n,), symbols (n,) with their signs as expected) to the symbols."""

_family, _byte = constriction.stream.model.Categorical(perfect=False), constriction.stream.model.Uniform(256)


class PayloadError(Exception):
    """A payload that these tables cannot have made."""


class EntropyModel(nn.Module):
    """The integers that the bits of a latent with C channels hang on.

    Args:
        sizes: (129,) int16, what a magnitude of 0..128 counts for in the sum for the size.
        weights: (2,4,C·(C+1)/2,9) int16 in 1/1024, for size and mean, each pass, each pair of a channel and one up to it (as
            `numpy.tril_indices` numbers them) and the nine positions around, row by row.
        bias: (4,C) int32 in 1/1024, of the size.
        edges: (S-1,) int32 in 1/1024, ascending: where one bucket of sizes ends and the next begins.
        tables: (S·2·8, 41) int32, counts of each distance from the centre (-20..20), for each bucket, centre zero or not,
            and phase of the mean.
    """

    sizes: Tensor
    weights: Tensor
    bias: Tensor
    edges: Tensor
    tables: Tensor

    def __init__(self, sizes: Tensor, weights: Tensor, bias: Tensor, edges: Tensor, tables: Tensor) -> None:
        super().__init__()
        for name, value in {"sizes": sizes, "weights": weights, "bias": bias, "edges": edges, "tables": tables}.items():
            if value.is_floating_point():
                raise ValueError(f"entropy.{name} is {value.dtype}, not whole numbers")
            self.register_buffer(name, value)
        self._check()

    def _check(self) -> None:
        """Raises: ValueError for tables that cannot be coded with, or whose sums could leave float32's whole numbers."""
        channels = self.bias.shape[1]
        shapes = {
            "sizes": (129,),
            "weights": (2, len(PASSES), channels * (channels + 1) // 2, 9),
            "bias": (len(PASSES), channels),
            "tables": ((len(self.edges) + 1) * 2 * PHASES, 2 * REACH + 1),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"entropy.{name} is {tuple(getattr(self, name).shape)}, not {shape}")
        if bool((self.tables < 1).any()) or bool((self.tables.sum(1) != TOTAL).any()):
            raise ValueError(f"entropy.tables: counts must be positive and a row's sum {TOTAL}")
        if bool((self.edges.diff() < 0).any()) or int(self.edges.abs().max()) >= EXACT_LIMIT:
            raise ValueError("entropy.edges must ascend and be exact in float32")
        largest = torch.tensor([int(self.sizes.abs().max()), 128])
        reach = np.abs(self._dense).sum((2, 4), dtype=np.float64) * largest.view(2, 1, 1).numpy()
        if (reach[0] + self.bias.abs().numpy() >= EXACT_LIMIT).any() or (reach[1] >= EXACT_LIMIT).any():
            raise ValueError("entropy.weights: sums may pass 2^24")

    @property
    def channels(self) -> int:
        return self.bias.shape[1]

    @cached_property
    def _dense(self) -> np.ndarray:
        """(2,4,C,C,9) float32: weights by the channel that is known, then the one that is expected."""
        known, expected = np.tril_indices(self.channels)[::-1]
        dense = np.zeros((2, len(PASSES), self.channels, self.channels, 9), np.float32)
        dense[:, :, known, expected] = self.weights.cpu().numpy()
        return dense

    @cached_property
    def _probabilities(self) -> np.ndarray:
        """(rows,41) float32, exact: counts of at most 21 bits over a power of two."""
        return self.tables.cpu().numpy().astype(np.float32) / TOTAL

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """sizes, bias, edges as float32."""
        return tuple(t.cpu().numpy().astype(np.float32) for t in (self.sizes, self.bias, self.edges))  # type: ignore[return-value]

    def encode(self, symbols: np.ndarray) -> bytes:
        """Symbols (C,h,w) int8 to a payload, whole 32-bit words in little-endian order."""
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
        """A payload to symbols (C,h,w) int8. Raises: PayloadError when it is none of this shape and these tables.

        Damage often goes unseen here: compare a checksum of the symbols.
        """
        if len(payload) % 4 or shape[0] != self.channels:
            raise PayloadError(f"{len(payload)} bytes are no payload of shape {shape} for {self.channels} channels")
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
        except AssertionError as e:  # constriction's word for bits that its models cannot have made
            raise PayloadError("the payload was not made with these tables") from e
        if np.abs(symbols).max(initial=0) > 128 or not decoder.maybe_exhausted():
            raise PayloadError("the payload was not made with these tables")
        return symbols.astype(np.int8)

    def walk(self, symbols: np.ndarray, exchange: Exchange) -> None:
        """Take symbols (C,h,w) int16 in coding order through `exchange`, which may change them."""
        _, height, width = symbols.shape
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                self._walk_tile(symbols[:, y : y + TILE, x : x + TILE], exchange)

    def _walk_tile(self, symbols: np.ndarray, exchange: Exchange) -> None:
        sizes, bias, _ = self._numbers
        # What is known of the present channel, as it counts for size and for mean; unknown positions are zero.
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
                rows, centres, signs = self._expect(sums[p][:, channel] + own[..., 0])
                here[:] = (exchange(rows, centres, here.ravel() * signs) * signs).reshape(here.shape)
                known[0, dy + 1 : -1 : 2, dx + 1 : -1 : 2] = sizes[np.abs(here).clip(max=128)]
                known[1, dy + 1 : -1 : 2, dx + 1 : -1 : 2] = here.clip(-128, 127)
            if known.any():
                for p, window in windows.items():
                    later = self._dense[:, p, channel, channel + 1 :]
                    sums[p][:, channel + 1 :] += later @ window.reshape(2, -1, 9).transpose(0, 2, 1)

    def _expect(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums for size and mean (2,n) to rows of `tables`, centres ≥ 0, and signs (±1) that make the mean positive."""
        bucket = np.searchsorted(self._numbers[2], sums[0], "right")
        mean = sums[1].astype(np.int32)
        shift = FRACTION_BITS - (PHASES.bit_length() - 1)
        eighths = np.minimum((np.abs(mean) + (1 << (shift - 1))) >> shift, 128 * PHASES)
        centres = (eighths + PHASES // 2) // PHASES
        phase = eighths - PHASES * centres + PHASES // 2
        rows = (bucket * 2 + (centres > 0)) * PHASES + phase
        return rows, centres, np.where(mean < 0, -1, 1).astype(np.int32)
