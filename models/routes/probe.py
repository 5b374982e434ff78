"""Measure the contract of a network: its scale, the sizes that it takes, and how far its outputs depend on inputs.

NaN shows what an output depends on: every sum or maximum with NaN is NaN, also with a weight of 0. One NaN in the input
therefore marks all outputs that depend on that pixel, with any weights.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from imagemill.models.contract import Tiling
from imagemill.models.errors import CheckpointError
from imagemill.models.precision import Precision
from imagemill.models.tiling import apply_tiled
from imagemill.models.type_checks import require_value

Run = Callable[[Tensor], Tensor]
"""Maps images (B,C,H,W) in [0,1] to images or latents (B,c,h,w)."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
MIN_SIDES = (1, 2, 3, 4, 7, 8, 11, 16, 24, 32, 48, 64, 96, 128)
STRIP_BREADTH = 64
MAX_HALO = 192
"""Networks with a larger halo would compute more outside of a tile than inside."""
EXACT_DIFFERENCE = 1e-4
"""Largest difference between tiles and the whole image, where 1 is white: rounding of float32."""
MEMORY_SIDE = 64
FORMATS = ("float32", "bfloat16", "float16")
MAX_FORMAT_DIFFERENCE = 1 / 255


def random_images(channels: int, height: int, width: int) -> Tensor:
    """Return one image (1,C,H,W) of random values in [0,1]; the same at each call."""
    return torch.rand((1, channels, height, width), generator=torch.Generator().manual_seed(0))


def try_size(run: Run, channels: int, height: int, width: int) -> tuple[int, int] | None:
    """Return the height and width of the output for an input of a size; None if the network fails."""
    try:
        result = run(random_images(channels, height, width))
    except (RuntimeError, ValueError, IndexError, AssertionError, ZeroDivisionError):
        return None
    return (result.shape[2], result.shape[3]) if result.ndim == 4 and result.isfinite().all() else None


def measure_sizes(run: Run, channels: int) -> tuple[Fraction, int, int]:
    """Measure which sizes a network takes.

    Returns:
        The scale of its output, the multiple that the sides of an input must be, and the smallest side.

    Raises:
        CheckpointError: when the network fails for all sizes, or its output has another scale in each direction.
    """
    largest = MULTIPLES[-1]
    size = try_size(run, channels, 2 * largest, 3 * largest)
    if size is None:
        # Let the network say why.
        run(random_images(channels, 2 * largest, 3 * largest))
        raise CheckpointError(f"the network gives no finite image for an input of {3 * largest}×{2 * largest} pixels")
    scale = Fraction(size[0], 2 * largest)
    if Fraction(size[1], 3 * largest) != scale:
        raise CheckpointError(f"the network makes {size[1]}×{size[0]} pixels of {3 * largest}×{2 * largest}: not one scale")

    def fits(height: int, width: int) -> bool:
        return try_size(run, channels, height, width) == (int(scale * height), int(scale * width))

    def takes_multiples(multiple: int) -> bool:
        """Try sides that are no multiples of a larger number."""
        count = 128 // multiple
        return all(fits(multiple * (count + odd), multiple * (count + odd + 1)) for odd in (1, 2))

    multiples = [m for m in MULTIPLES if (m * scale).denominator == 1]
    multiple = next((m for m in multiples if takes_multiples(m)), largest)
    side = next((s for s in MIN_SIDES if s % multiple == 0 and fits(s, s)), largest)
    return scale, multiple, side


def measure_halo(run: Run, channels: int, multiple: int, min_side: int = 1) -> int | None:
    """Return how far an output depends on inputs, as a multiple of `multiple` in input pixels; None without a limit.

    The images are strips, which cost less than squares: a horizontal one shows the horizontal reach.

    Args:
        run: the network.
        channels: colour planes of its input.
        multiple: the sides of an input must be multiples of it.
        min_side: smallest side of an input.
    """
    breadth = round_up(max(STRIP_BREADTH, min_side), multiple)
    length = round_up(MAX_HALO + 1, multiple)
    # At the end of a strip, a network without a limit shows at half of the cost.
    ends = [marked_outputs(run, channels, breadth, length, 0, is_vertical) for is_vertical in (False, True)]
    if any(marked is None or marked[1] >= length for marked in ends):
        return None
    length = round_up(2 * max(int(marked[1]) for marked in ends if marked) + 2, 2 * multiple) + 2 * multiple
    reach = 0
    # The reach of a pixel depends on its place between the multiples.
    for at in {length // 2, length // 2 + multiple // 2, length // 2 + multiple - 1}:
        for is_vertical in (False, True):
            marked = marked_outputs(run, channels, breadth, length, at, is_vertical)
            if marked is None or marked[0] <= 0 or marked[1] >= length:
                return None
            reach = max(reach, at - int(marked[0]), math.ceil(marked[1]) - 1 - at)
    halo = round_up(reach, multiple)
    return halo if halo <= MAX_HALO else None


def marked_outputs(
    run: Run, channels: int, breadth: int, length: int, at: int, is_vertical: bool
) -> tuple[Fraction, Fraction] | None:
    """Return the first and the last position, in input pixels, of outputs that depend on a pixel of a strip.

    Args:
        run: the network.
        channels: colour planes of its input.
        breadth: short side of the strip.
        length: long side of the strip.
        at: position of the pixel on the long side.
        is_vertical: whether the long side is the height.

    Returns:
        None if no output depends on the pixel.
    """
    x = random_images(channels, *((length, breadth) if is_vertical else (breadth, length)))
    x[(..., at, breadth // 2) if is_vertical else (..., breadth // 2, at)] = torch.nan
    along = run(x).isnan().any(1)[0].any(1 if is_vertical else 0)
    places = along.nonzero().flatten()
    if not len(places):
        return None
    scale = Fraction(len(along), length)
    return int(places.min()) / scale, (int(places.max()) + 1) / scale


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple


def is_exact(run: Run, channels: int, multiple: int, halo: int, scale: Fraction) -> bool:
    """Return whether tiles with a halo give the result of the whole image, with a halo that `measure_halo` found.

    This finds what NaN does not show, such as windows that move with the tile.
    """
    tile = -(-64 // multiple) * multiple
    x = random_images(channels, 2 * tile + 2 * halo + multiple, tile + multiple)
    difference = (apply_tiled(run, x, tile, halo, scale, multiple) - run(x)).abs().max()
    return bool(difference <= EXACT_DIFFERENCE)


def measure_tiling(run: Run, channels: int, multiple: int, scale: Fraction, min_side: int = 1) -> tuple[Tiling, int, int]:
    """Measure how an image may be cut into tiles.

    A network that pads its input itself takes any size, but its result still depends on where a tile begins.

    Args:
        run: the network.
        channels: colour planes of its input.
        multiple: the sides of an input must be multiples of it.
        scale: output size divided by input size.
        min_side: smallest side of an input.

    Returns:
        The tiling ("exact" or "never"), the halo, and the multiple at which tiles must begin.
    """
    # Each attempt takes several passes over large images, so only the smallest and the largest alignment are tried.
    for alignment in dict.fromkeys((multiple, math.lcm(multiple, MULTIPLES[-1]))):
        halo = measure_halo(run, channels, alignment, min_side)
        if halo is None:
            break
        if is_exact(run, channels, alignment, halo, scale):
            return "exact", halo, alignment
    return "never", 0, multiple


@torch.inference_mode()
def measure_memory(run: Run, channels: int, multiple: int = 1) -> int:
    """Measure how many bytes a network needs for each pixel of an input, in float32 on the CPU.

    Args:
        run: the network.
        channels: colour planes of its input.
        multiple: the sides of an input must be multiples of it.

    Returns:
        The growth of the peak memory of a pass, from one size to twice its sides.
    """
    side = -(-MEMORY_SIDE // multiple) * multiple
    small, large = (peak_memory(run, random_images(channels, length, length)) for length in (side, 2 * side))
    return max(1, (large - small) // (3 * side * side))


def peak_memory(run: Run, x_BCHW: Tensor) -> int:
    """Return the most bytes that torch holds at once on the CPU during a call, without those that it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run(x_BCHW)
    events = require_value(recorded.profiler, "the profiler").kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate((change for _, change in changes), initial=0))


class HalfRounding(TorchFunctionMode):
    """Rounds the arguments and results of all functions of torch to float16, but computes in float32.

    A CPU computes in float16 so slowly that a larger network would take minutes for a small image. A GPU also adds up in
    float32, and rounds fewer values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function with rounded tensors."""
        rounded = [round_to_half(argument) for argument in args]
        return round_to_half(func(*rounded, **{key: round_to_half(value) for key, value in (kwargs or {}).items()}))


def round_to_half(value: Any) -> Any:
    """Return a float32 tensor with the precision and the range of float16; other values as they are."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        with torch._C.DisableTorchFunction():
            return value.half().float()
    return value


@torch.inference_mode()
def measure_dtypes(run: Run, x_BCHW: Tensor, device: str = "cpu") -> tuple[str, ...]:
    """Return the number formats in which a network gives the result of float32, within one level of 8 bits.

    Args:
        run: the network, on the device.
        x_BCHW: an image (B,C,H,W) float32 in [0,1] of the kind that the network is for, of a size that it takes.
        device: "cpu" or "cuda".
    """
    expected = run(x_BCHW).float().clamp(0, 1)
    differences = {}
    for name in FORMATS[1:]:
        try:
            if (device, name) == ("cpu", "float16"):
                with HalfRounding():
                    y = run(x_BCHW)
            else:
                y = Precision(device, getattr(torch, name)).run(run, x_BCHW)
        except RuntimeError:
            continue  # An operation of the network does not exist in this format.
        differences[name] = float((y.float().clamp(0, 1) - expected).abs().max())
    return (FORMATS[0], *(name for name, difference in differences.items() if difference <= MAX_FORMAT_DIFFERENCE))
