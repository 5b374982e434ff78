"""Large images in pieces: tiles with a halo, so that memory is bounded and no seam shows."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

LEAST_TILE = 64


def tiles(length: int, tile: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, keep_from, keep_to) along one axis: what to read, what of it to keep; the kept parts tile it."""
    for keep_from in range(0, length, tile):
        keep_to = min(keep_from + tile, length)
        yield max(keep_from - halo, 0), min(keep_to + halo, length), keep_from, keep_to


def tiled(fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction = Fraction(1)) -> Tensor:
    """fn(x) computed on tiles of `tile` input pixels and a margin of `halo`, exact where fn looks no further than `halo`.

    Tiles that do not fit into memory are halved, down to LEAST_TILE.

    Args: x (B,C,H,W). scale: output size / input size of fn (1, 1/8 for an encoder of stride 8, 8 for its decoder).
        `tile`, its halves, and `halo` times `scale` must be whole numbers.
    """
    try:
        return in_tiles(fn, x, tile, halo, scale)
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e) or tile // 2 < LEAST_TILE or (tile // 2 * scale).denominator > 1:
            raise
    # Outside of `except`: the traceback holds on to what did not fit.
    return tiled(fn, x, tile // 2, halo, scale)


def out_of_memory(error: Exception) -> bool:
    """Whether torch, or Python, had not the memory; on CPUs torch says it in words alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def in_tiles(fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction) -> Tensor:
    h, w = x.shape[2:]
    if h <= tile + 2 * halo and w <= tile + 2 * halo:
        return fn(x)
    out: Tensor | None = None
    for y0, y1, ky0, ky1 in tiles(h, tile, halo):
        for x0, x1, kx0, kx1 in tiles(w, tile, halo):
            piece = fn(x[:, :, y0:y1, x0:x1])
            if out is None:
                out = piece.new_empty(x.shape[0], piece.shape[1], int(h * scale), int(w * scale))
            rows = slice(int((ky0 - y0) * scale), int((ky1 - y0) * scale))
            columns = slice(int((kx0 - x0) * scale), int((kx1 - x0) * scale))
            out[:, :, int(ky0 * scale) : int(ky1 * scale), int(kx0 * scale) : int(kx1 * scale)] = piece[:, :, rows, columns]
    assert out is not None
    return out
