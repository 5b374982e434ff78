"""Large images in pieces: tiles with a halo, so that memory is bounded and no seam shows."""

import ctypes
from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

from imagemill.models.type_checks import require_value

TileResult = tuple[slice, slice, Tensor]
"""The rows and columns of a result that a piece is, and the piece (B,C,h,w)."""
TILE = 1024
MIN_TILE = 64
OUT_OF_MEMORY_MESSAGES = (
    "allocate memory",  # torch on a CPU
    "out of memory",  # CUDA itself, outside of torch's allocator
    "ALLOC_FAILED",  # cuDNN and cuBLAS
    "STATUS_NOT_INITIALIZED",  # cuDNN and cuBLAS, which allocate at their first call
    "unable to find an engine",  # cuDNN, when the workspace of no algorithm fits
)
LARGE_PIXELS = 12_000_000
"""Of images above this, pixels and result alone take what memory there is: their tiles are a quarter as large."""


def tile_side(h: int, w: int) -> int:
    """The side of the tiles for an image of that size."""
    return TILE if h * w <= LARGE_PIXELS else TILE // 2


def apply_tiled(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    halo: int,
    scale: Fraction = Fraction(1),
    stride: int = 1,
    in_place: bool = False,
) -> Tensor:
    """fn(x) computed on tiles of `tile` input pixels and a margin of `halo`, exact where fn looks no further than `halo`.

    Tiles that do not fit into memory are computed in quarters, down to LEAST_TILE.

    Args:
        x: (B,C,H,W).
        scale: output size / input size of fn (1, 1/8 for an encoder of stride 8, 8 for its decoder).
        stride: what fn takes multiples of; the result is that of x padded to them, and only what is cut at the edge is
            copied for it. `tile`, its halves, and `halo` must be multiples of it, and whole numbers times `scale`.
        in_place: x becomes the result, without the padding, and a large image lies in memory once; where fn gives what it
            takes and nobody needs x any more.
    """
    found = compute_tiles(fn, x, tile, halo, scale, stride, smaller=True)
    return assemble_in_place(found, x, tile, halo) if in_place else assemble(found, x, scale, stride)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, or Python, had not the memory; libraries below torch say it in words alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in OUT_OF_MEMORY_MESSAGES
    )


def is_lost_device(error: Exception) -> bool:
    """Whether a GPU failed so that the process can no longer use any: CUDA answers every later call with the same error."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def apply_in_fixed_tiles(fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction) -> Tensor:
    """As `apply_tiled`, with tiles of this size alone, where fn takes any size."""
    return assemble(compute_tiles(fn, x, tile, halo, scale), x, scale, stride=1)


def assemble(found: Iterator[TileResult], x: Tensor, scale: Fraction, stride: int) -> Tensor:
    """The result of which these are the pieces; of one alone that piece."""
    h, w = (int((n + -n % stride) * scale) for n in x.shape[2:])
    out: Tensor | None = None
    for rows, columns, piece in found:
        if piece.shape[2:] == (h, w):
            return piece
        if out is None:
            # Pictures pixel by pixel, as files have them: nobody needs another copy. Latents channel by channel.
            layout = torch.channels_last if piece.shape[1] <= 4 else torch.contiguous_format
            shape = x.shape[0], piece.shape[1], h, w
            out = torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout)
        out[:, :, rows, columns] = piece
    return require_value(out, "a piece")


def assemble_in_place(found: Iterator[TileResult], x: Tensor, tile: int, halo: int) -> Tensor:
    """x with pieces in its place, a row of tiles when no other one reads it any more; of one piece alone that piece."""
    waiting: dict[int, Tensor] = {}

    def write(top: int) -> None:
        x[:, :, top : top + tile] = waiting.pop(top)

    for rows, columns, piece in found:
        if piece.shape[2] >= x.shape[2] and piece.shape[3] >= x.shape[3]:
            return piece
        top = rows.start // tile * tile
        if top not in waiting:
            for above in [other for other in waiting if other + tile + halo <= top]:
                write(above)
            # One block of memory: hundreds of small ones would lie in the way of what the model needs.
            waiting[top] = torch.empty_like(x[:, :, top : top + tile])
        place = waiting[top][:, :, rows.start - top : rows.stop - top, columns]
        place.copy_(piece[:, :, : place.shape[2], : place.shape[3]])
    for top in list(waiting):
        write(top)
    return x


def compute_tiles(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    halo: int,
    scale: Fraction = Fraction(1),
    stride: int = 1,
    smaller: bool = False,
) -> Iterator[TileResult]:
    """What a result is put together from, one row of tiles after the other; what is small enough is one piece."""
    h, w = (n + -n % stride for n in x.shape[2:])
    whole = h <= tile + 2 * halo and w <= tile + 2 * halo
    # Of what goes in and what comes out, the larger one.
    large = h * w * max(Fraction(1), scale) ** 2 > LARGE_PIXELS

    def computed(rows: slice, columns: slice, tile: int) -> Iterator[TileResult]:
        top, bottom = max(rows.start - halo, 0), min(rows.stop + halo, h)
        left, right = max(columns.start - halo, 0), min(columns.stop + halo, w)
        try:
            piece = fn(pad_to_size(x[:, :, top:bottom, left:right], bottom - top, right - left))
        except (RuntimeError, MemoryError) as e:
            half = tile // 2
            if not smaller or not is_out_of_memory(e) or half < MIN_TILE or (half * scale).denominator > 1:
                raise
        else:
            of_piece = scale_slice(rows, scale, top), scale_slice(columns, scale, left)
            yield scale_slice(rows, scale), scale_slice(columns, scale), piece[:, :, *of_piece]
            return
        # Outside of `except`: the traceback holds on to what did not fit.
        for part in split_slice(rows, half):
            for side in split_slice(columns, half):
                yield from computed(part, side, half)

    for rows in split_slice(slice(0, h), h if whole else tile):
        if large:
            release_free_memory()
        for columns in split_slice(slice(0, w), w if whole else tile):
            yield from computed(rows, columns, tile)


def release_free_memory() -> None:
    """Free memory goes back to the kernel, which the C library may have been told to keep.

    Blocks of many sizes leave holes in which the next ones have no place: a large image took 400 MB more by its last tile.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def split_slice(whole: slice, length: int) -> Iterator[slice]:
    """A slice in parts of a length, the last one of what is left."""
    return (slice(start, min(start + length, whole.stop)) for start in range(whole.start, whole.stop, length))


def scale_slice(part: slice, scale: Fraction, start: int = 0) -> slice:
    """Where a part of the input, counted from `start`, lies in the output."""
    return slice(int((part.start - start) * scale), int((part.stop - start) * scale))


def pad_to_size(x: Tensor, h: int, w: int) -> Tensor:
    """x (B,C,H,W) with its last row and column repeated until it has the size (h,w), in the memory format that it has."""
    if x.shape[2:] == (h, w):
        return x
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    x = torch.cat([x, x[:, :, -1:].expand(-1, -1, h - x.shape[2], -1)], 2)
    x = torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, w - x.shape[3])], 3)
    return x.contiguous(memory_format=layout)
