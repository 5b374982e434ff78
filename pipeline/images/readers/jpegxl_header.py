"""The header of a JPEG XL codestream: size, depth, extra channels and colours. Source: ISO/IEC 18181-1, annexes B to E."""

from dataclasses import dataclass, field, replace

from imagemill.pipeline.images.colour import PRIMARIES, UNSPECIFIED, ColourSpace, parse_cicp
from imagemill.pipeline.images.readers.bits import BitReader

CODESTREAM = b"\xff\x0a"
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Width to height, by the code of a ratio."""
ALPHA, SPOT_COLOUR, BLACK, CFA = 0, 2, 3, 5
"""Types of extra channels."""
GRAY, XYB = 1, 2
"""Colour spaces; the others are RGB. XYB models the cones of the eye (L, M, S); lossy files store their colours in it."""
CUSTOM = 2
D65, EQUAL_ENERGY, DCI = 1, 10, 11
"""White points."""
P3 = 11
P3_DCI, P3_D65 = 11, 12
"""Code points of H.273 for P3 with either white point. JPEG XL has one code for both."""
WHITES = {EQUAL_ENERGY: (1 / 3, 1 / 3), DCI: (0.314, 0.351)}

Field = tuple[int, int]
"""An offset, and the number of bits that are added to the offset."""
SIZE: tuple[Field, ...] = ((1, 9), (1, 13), (1, 18), (1, 30))
ENUM: tuple[Field, ...] = ((0, 0), (1, 0), (2, 4), (18, 6))
CHROMATICITY: tuple[Field, ...] = ((0, 19), (1 << 19, 19), (1 << 20, 20), (1 << 21, 21))


@dataclass
class Header:
    """What the header says about an image."""

    width: int
    height: int
    orientation: int = 1
    bits: int = 8
    bits_at: int = 0
    """Position of the code of `bits`, in bits from the beginning of the codestream; 0 if the header has no such code."""
    is_float: bool = False
    extra_channels: list[int] = field(default_factory=list)
    """The type of each extra channel."""
    is_premultiplied: bool = False
    is_xyb: bool = True
    """Whether the colours are stored as XYB. The decoder then converts them to the declared colour space."""
    is_gray: bool = False
    has_profile: bool = False
    """Whether an ICC profile describes the colours instead of `colour_space`."""
    colour_space: ColourSpace | None = None
    ignored_colours: str = ""


def parse_header(codestream: bytes) -> Header:
    """Parse the header.

    Args:
        codestream: the codestream, or its beginning.

    Raises:
        ValueError: if the header is damaged or truncated.
    """
    if not codestream.startswith(CODESTREAM):
        raise ValueError("the file has no codestream")
    bits = BitReader(codestream[2:], lowest_first=True)
    header = Header(*read_size(bits))
    if bits.take(1):
        return header
    has_extra_fields = bits.take(1)
    if has_extra_fields:
        header.orientation = 1 + bits.take(3)
        if bits.take(1):
            read_size(bits)
        if bits.take(1):
            skip_preview(bits)
        is_animation = bits.take(1)
        if is_animation:
            for fields in (
                ((100, 0), (1000, 0), (1, 10), (1, 30)),
                ((1, 0), (1001, 0), (1, 8), (1, 10)),
                ((0, 0), (0, 3), (0, 16), (0, 32)),
            ):
                take(bits, fields)
            bits.skip(1)
    # One bit before the code says whether samples are floating-point.
    header.bits_at = 8 * len(CODESTREAM) + bits.position + 1
    header.bits, header.is_float = read_depth(bits)
    bits.skip(1)
    for _ in range(take(bits, ((0, 0), (1, 0), (2, 4), (1, 12)))):
        channel_type, is_premultiplied = read_extra_channel(bits)
        header.extra_channels.append(channel_type)
        header.is_premultiplied |= is_premultiplied
    header.is_xyb = bool(bits.take(1))
    read_colours(bits, header)
    return header


def take(bits: BitReader, fields: tuple[Field, ...]) -> int:
    """Read a number whose first two bits choose one of four fields."""
    offset, count = fields[bits.take(2)]
    return offset + bits.take(count)


def read_size(bits: BitReader) -> tuple[int, int]:
    """Read (width, height)."""
    is_small = bits.take(1)
    height = 8 * (1 + bits.take(5)) if is_small else take(bits, SIZE)
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = RATIOS[ratio]
        return height * numerator // denominator, height
    return 8 * (1 + bits.take(5)) if is_small else take(bits, SIZE), height


def skip_preview(bits: BitReader) -> None:
    """Skip the size of a preview."""
    fields = ((16, 0), (32, 0), (1, 5), (33, 9)) if bits.take(1) else ((1, 6), (65, 8), (321, 10), (1345, 12))
    take(bits, fields)
    if not bits.take(3):
        take(bits, fields)


def read_depth(bits: BitReader) -> tuple[int, bool]:
    """Read the bits per sample, and whether samples are floating-point."""
    if not bits.take(1):
        return take(bits, ((8, 0), (10, 0), (12, 0), (1, 6))), False
    depth = take(bits, ((32, 0), (16, 0), (24, 0), (1, 6)))
    bits.skip(4)
    return depth, True


def read_extra_channel(bits: BitReader) -> tuple[int, bool]:
    """Read the type of an extra channel, and whether it is alpha that colours are multiplied by."""
    if bits.take(1):
        return ALPHA, False
    channel_type = take(bits, ENUM)
    read_depth(bits)
    take(bits, ((0, 0), (3, 0), (4, 0), (1, 3)))
    bits.skip(8 * take(bits, ((0, 0), (0, 4), (16, 5), (48, 10))))
    if channel_type == SPOT_COLOUR:
        bits.skip(4 * 16)
    elif channel_type == CFA:
        take(bits, ((1, 0), (0, 2), (3, 4), (19, 8)))
    return channel_type, channel_type == ALPHA and bool(bits.take(1))


def read_colours(bits: BitReader, header: Header) -> None:
    """Read the colour encoding into `header`."""
    if bits.take(1):
        return
    header.has_profile = bool(bits.take(1))
    kind = take(bits, ENUM)
    header.is_gray = kind == GRAY
    if header.has_profile or kind == XYB:
        return
    white = take(bits, ENUM)
    white_xy = read_chromaticity(bits) if white == CUSTOM else WHITES.get(white)
    primaries, rgb_xy = 1, None
    if not header.is_gray:
        primaries = take(bits, ENUM)
        if primaries == CUSTOM:
            rgb_xy = [value for _ in range(3) for value in read_chromaticity(bits)]
        elif primaries == P3:
            primaries = P3_DCI if white == DCI else P3_D65
    gamma = bits.take(24) / 1e7 if bits.take(1) else None
    transfer = UNSPECIFIED if gamma else take(bits, ENUM)
    space, header.ignored_colours = parse_cicp(1 if rgb_xy else primaries, transfer)
    space = space or ColourSpace()
    if gamma:
        space = replace(space, curve=1 / gamma, name=f"gamma {1 / gamma:.3g}")
    if rgb_xy or (white_xy and not header.is_gray):
        known = PRIMARIES.get(primaries, PRIMARIES[1])[1]
        chromaticities = (*(rgb_xy or known[:6]), *(white_xy or known[6:]))
        space = replace(space, primaries=chromaticities, name=f"custom primaries, {space.name}")
    header.colour_space = space


def read_chromaticity(bits: BitReader) -> tuple[float, float]:
    """Read CIE x and y."""
    x, y = (take(bits, CHROMATICITY) for _ in range(2))
    # The lowest bit is the sign.
    return tuple((-(value + 1) // 2 if value & 1 else value // 2) / 1e6 for value in (x, y))  # type: ignore[return-value]
