"""Process large images in tiles that overlap by a halo, so that memory is bounded and the result has no seams."""

import ctypes
from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

from imagemill.models.type_checks import require_value

TileResult = tuple[slice, slice, Tensor]
"""Rows and columns in the result, and the values there (B,C,h,w)."""
TILE = 1024
MIN_TILE = 64
OUT_OF_MEMORY_MESSAGES = (
    "allocate memory",  # torch on a CPU
    "out of memory",  # CUDA outside torch's allocator
    "ALLOC_FAILED",  # cuDNN and cuBLAS
    "STATUS_NOT_INITIALIZED",  # cuDNN and cuBLAS, which allocate in their first call
    "unable to find an engine",  # cuDNN, when no algorithm's workspace fits
)
LARGE_PIXELS = 12_000_000
"""Above this size, image and result alone need most of a worker's memory, so their tiles have half the side."""


def tile_side(h: int, w: int) -> int:
    """Return the side of the tiles for an image of h×w pixels."""
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
    """Compute fn(x) in tiles; the result is exact if no output of fn depends on inputs further away than `halo`.

    Tiles that do not fit into memory are computed in quarters, down to a side of MIN_TILE.

    Args:
        fn: a function of (B,C,h,w) that returns (B,C',scale·h,scale·w).
        x: (B,C,H,W).
        tile: side of a tile without its halo, in input pixels.
        halo: overlap with each neighbour, in input pixels.
        scale: output size divided by input size: 1, 1/8 for an encoder of stride 8, 8 for its decoder.
        stride: the sides of fn's inputs are multiples of it. The result is that of x padded to such sides; only the tiles at
            the edge are copied for this. `tile`, its halves and `halo` must be multiples of it, and integers times `scale`.
        in_place: write the result into x, without the padding, so that a large image is in memory once. For a function that
            keeps size, channels and dtype, and a caller that does not need x afterwards.
    """
    results = compute_tiles(fn, x, tile, halo, scale, stride, split_on_failure=True)
    return assemble_in_place(results, x, tile, halo) if in_place else assemble(results, x, scale, stride)


def apply_blended(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    scale: int,
    multiple: int,
    finish: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute fn(x) in tiles that overlap, and blend them linearly where they overlap, so that no edge of a tile is visible.

    For a function whose outputs depend on inputs at any distance. The tiles depend on the size of x alone, never on memory.

    Args:
        fn: a function of (B,C,h,w) that returns floats (B,C',scale·h,scale·w).
        x: (B,C,H,W).
        tile: side of the largest tile with its overlap, in input pixels; at least twice `overlap`.
        overlap: pixels that neighbours share.
        scale: output size divided by input size.
        multiple: tiles begin at multiples of it; `tile` and `overlap` are multiples of it.
        finish: converts finished rows, such as `float_to_bytes`, so that few rows are floats at once.
    """
    h, w = x.shape[2:]
    out: Tensor | None = None
    waiting: Tensor | None = None
    for top, bottom in overlapping_slices(h, tile, overlap, multiple):
        band: Tensor | None = None
        for left, right in overlapping_slices(w, tile, overlap, multiple):
            part = fn(x[:, :, top:bottom, left:right])
            band = part if band is None else blend(band, part, scale * overlap, 3)
        rows = require_value(band, "a tile")
        if waiting is not None:
            rows = blend(waiting, rows, scale * overlap, 2)
        # The next row of tiles overlaps the last rows.
        waiting = None if bottom == h else rows[:, :, -scale * overlap :]
        finished = finish(rows)
        if out is None:
            size = (*finished.shape[:2], scale * h, scale * w)
            out = torch.empty(size, dtype=finished.dtype, device=finished.device, memory_format=torch.channels_last)
        out[:, :, scale * top : scale * bottom] = finished
    return require_value(out, "a row of tiles")


def overlapping_slices(length: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Return the starts and ends of tiles of about equal length, of which no three overlap."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    step = -(-(length - overlap) // (count * multiple)) * multiple
    return [(start, min(start + step + overlap, length)) for start in range(0, length - overlap, step)]


def blend(a: Tensor, b: Tensor, shared: int, axis: int) -> Tensor:
    """Join two neighbours along an axis, of which the last `shared` values of a are at the place of the first ones of b."""
    ramp = (torch.arange(shared, device=a.device, dtype=a.dtype) + 0.5) / shared
    ramp = ramp.view(-1, *[1] * (a.ndim - 1 - axis))
    before, end = a.split([a.shape[axis] - shared, shared], axis)
    start, after = b.split([shared, b.shape[axis] - shared], axis)
    return torch.cat([before, torch.lerp(end, start, ramp), after], axis)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that torch, a library below torch, or Python lacks memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)


def is_lost_device(error: Exception) -> bool:
    """Return whether a GPU failed for good: CUDA then answers every later call of the process with the same error."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def apply_in_fixed_tiles(fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction) -> Tensor:
    """Like `apply_tiled`, but never split a tile, so that the result does not depend on free memory. fn takes any size."""
    return assemble(compute_tiles(fn, x, tile, halo, scale), x, scale, stride=1)


def assemble(results: Iterator[TileResult], x: Tensor, scale: Fraction, stride: int) -> Tensor:
    """Join the results of the tiles of x. The result of a single tile is returned without a copy."""
    h, w = (int((n + -n % stride) * scale) for n in x.shape[2:])
    out: Tensor | None = None
    for rows, columns, values in results:
        if values.shape[2:] == (h, w):
            return values
        if out is None:
            # Images are channels last, as files need them, which saves a copy. Latents are stored channel by channel.
            layout = torch.channels_last if values.shape[1] <= 4 else torch.contiguous_format
            shape = x.shape[0], values.shape[1], h, w
            out = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=layout)
        out[:, :, rows, columns] = values
    return require_value(out, "a tile")


def assemble_in_place(results: Iterator[TileResult], x: Tensor, tile: int, halo: int) -> Tensor:
    """Write the results into x, each row of tiles as soon as no later tile reads it. A single tile is returned itself."""
    waiting: dict[int, Tensor] = {}

    def write(top: int) -> None:
        x[:, :, top : top + tile] = waiting.pop(top)

    for rows, columns, values in results:
        if values.shape[2] >= x.shape[2] and values.shape[3] >= x.shape[3]:
            return values
        top = rows.start // tile * tile
        if top not in waiting:
            for earlier in [other for other in waiting if other + tile + halo <= top]:
                write(earlier)
            # One block of memory for the row: hundreds of small blocks would fragment the memory that the model needs.
            waiting[top] = torch.empty_like(x[:, :, top : top + tile])
        target = waiting[top][:, :, rows.start - top : rows.stop - top, columns]
        target.copy_(values[:, :, : target.shape[2], : target.shape[3]])
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
    split_on_failure: bool = False,
) -> Iterator[TileResult]:
    """Yield fn of each tile, row by row. An image of at most `tile` plus both halos is one tile.

    Args:
        fn: as for `apply_tiled`.
        x: as for `apply_tiled`.
        tile: as for `apply_tiled`.
        halo: as for `apply_tiled`.
        scale: as for `apply_tiled`.
        stride: as for `apply_tiled`.
        split_on_failure: compute a tile that does not fit into memory in quarters.
    """
    h, w = (n + -n % stride for n in x.shape[2:])
    is_single = h <= tile + 2 * halo and w <= tile + 2 * halo
    # The larger one of input and output counts.
    is_large = h * w * max(Fraction(1), scale) ** 2 > LARGE_PIXELS

    def compute(rows: slice, columns: slice, tile: int) -> Iterator[TileResult]:
        top, bottom = max(rows.start - halo, 0), min(rows.stop + halo, h)
        left, right = max(columns.start - halo, 0), min(columns.stop + halo, w)
        try:
            values = fn(pad_to_size(x[:, :, top:bottom, left:right], bottom - top, right - left))
        except (RuntimeError, MemoryError) as e:
            half = tile // 2
            if not split_on_failure or not is_out_of_memory(e) or half < MIN_TILE or (half * scale).denominator > 1:
                raise
        else:
            inner = scale_slice(rows, scale, top), scale_slice(columns, scale, left)
            yield scale_slice(rows, scale), scale_slice(columns, scale), values[:, :, *inner]
            return
        # Outside the `except` block, whose traceback would keep the memory of the failed tile.
        for half_rows in split_slice(rows, half):
            for half_columns in split_slice(columns, half):
                yield from compute(half_rows, half_columns, half)

    for rows in split_slice(slice(0, h), h if is_single else tile):
        if is_large:
            release_free_memory()
        for columns in split_slice(slice(0, w), w if is_single else tile):
            yield from compute(rows, columns, tile)


def release_free_memory() -> None:
    """Return free memory to the kernel, which the C library may be configured to keep.

    Blocks of many sizes leave gaps that later blocks do not fit into. Without this call, the memory of a large image grew by
    400 MB from its first to its last tile.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def split_slice(whole: slice, length: int) -> Iterator[slice]:
    """Yield consecutive slices of `length` that cover a slice; the last one may be shorter."""
    return (slice(start, min(start + length, whole.stop)) for start in range(whole.start, whole.stop, length))


def scale_slice(part: slice, scale: Fraction, start: int = 0) -> slice:
    """Return the output positions of a slice of the input, counted from the input position `start`."""
    return slice(int((part.start - start) * scale), int((part.stop - start) * scale))


def pad_to_size(x: Tensor, h: int, w: int) -> Tensor:
    """Repeat the last row and column of x (B,C,H,W) up to the size (h,w); the memory format stays."""
    if x.shape[2:] == (h, w):
        return x
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    x = torch.cat([x, x[:, :, -1:].expand(-1, -1, h - x.shape[2], -1)], 2)
    x = torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, w - x.shape[3])], 3)
    return x.contiguous(memory_format=layout)
