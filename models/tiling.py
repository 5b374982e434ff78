"""Large images in pieces: tiles with a halo, so that memory is bounded and no seam shows."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

TILE = 1024
LEAST_TILE = 64
LARGE_PIXELS = 12_000_000
"""Of images above this, pixels and result alone take what memory there is: their tiles are a quarter as large."""


def tile_side(h: int, w: int) -> int:
    """The side of the tiles for an image of that size."""
    return TILE if h * w <= LARGE_PIXELS else TILE // 2


def tiles(length: int, tile: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, keep_from, keep_to) along one axis: what to read, what of it to keep; the kept parts tile it."""
    for keep_from in range(0, length, tile):
        keep_to = min(keep_from + tile, length)
        yield max(keep_from - halo, 0), min(keep_to + halo, length), keep_from, keep_to


def tiled(
    fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction = Fraction(1), stride: int = 1
) -> Tensor:
    """fn(x) computed on tiles of `tile` input pixels and a margin of `halo`, exact where fn looks no further than `halo`.

    Tiles that do not fit into memory are halved, down to LEAST_TILE.

    Args:
        x: (B,C,H,W).
        scale: output size / input size of fn (1, 1/8 for an encoder of stride 8, 8 for its decoder).
        stride: what fn takes multiples of; the result is that of x padded to them, and only what is cut at the edge is
            copied for it. `tile`, its halves, and `halo` must be multiples of it, and whole numbers times `scale`.
    """
    try:
        return in_tiles(fn, x, tile, halo, scale, stride)
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e) or tile // 2 < LEAST_TILE or (tile // 2 * scale).denominator > 1:
            raise
    # Outside of `except`: the traceback holds on to what did not fit.
    return tiled(fn, x, tile // 2, halo, scale, stride)


def out_of_memory(error: Exception) -> bool:
    """Whether torch, or Python, had not the memory; on CPUs torch says it in words alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def in_tiles(fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction, stride: int = 1) -> Tensor:
    """As `tiled`, with tiles of this size alone."""
    h, w = (int((n + -n % stride) * scale) for n in x.shape[2:])
    out: Tensor | None = None
    for rows, columns, piece in pieces(fn, x, tile, halo, scale, stride):
        if piece.shape[2:] == (h, w):
            return piece
        if out is None:
            # Pictures pixel by pixel, as files have them: nobody needs another copy. Latents channel by channel.
            layout = torch.channels_last if piece.shape[1] <= 4 else torch.contiguous_format
            shape = x.shape[0], piece.shape[1], h, w
            out = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout)
        out[:, :, rows, columns] = piece
    assert out is not None
    return out


def pieces(
    fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction = Fraction(1), stride: int = 1
) -> Iterator[tuple[slice, slice, Tensor]]:
    """What `in_tiles` puts together: the rows and columns of the result that each piece is, and the piece (B,C,h,w)."""
    h, w = (n + -n % stride for n in x.shape[2:])
    if h <= tile + 2 * halo and w <= tile + 2 * halo:
        yield slice(0, int(h * scale)), slice(0, int(w * scale)), fn(padded(x, h, w))
        return
    for y0, y1, ky0, ky1 in tiles(h, tile, halo):
        for x0, x1, kx0, kx1 in tiles(w, tile, halo):
            piece = fn(padded(x[:, :, y0:y1, x0:x1], y1 - y0, x1 - x0))
            rows = slice(int((ky0 - y0) * scale), int((ky1 - y0) * scale))
            columns = slice(int((kx0 - x0) * scale), int((kx1 - x0) * scale))
            placed = slice(int(ky0 * scale), int(ky1 * scale)), slice(int(kx0 * scale), int(kx1 * scale))
            yield *placed, piece[:, :, rows, columns]


def padded(x: Tensor, h: int, w: int) -> Tensor:
    """x (B,C,H,W) with its last row and column repeated until it has the size (h,w), in the memory format that it has."""
    if x.shape[2:] == (h, w):
        return x
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    x = torch.cat([x, x[:, :, -1:].expand(-1, -1, h - x.shape[2], -1)], 2)
    x = torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, w - x.shape[3])], 3)
    return x.contiguous(memory_format=layout)
