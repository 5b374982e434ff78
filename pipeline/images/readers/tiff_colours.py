"""What the samples of a TIFF mean: gray, colours, inks and transparency of any depth as 8 bits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.tiff_page import (
    COLOUR_MAP,
    EXTRA_SAMPLES,
    INK_SET,
    REFERENCE_BLACK_WHITE,
    SAMPLE_FORMAT,
    YCBCR_COEFFICIENTS,
    Page,
    broken,
    unsupported,
)
from imagemill.pipeline.images.readers.tiff_segments import FAX, JPEGS
from imagemill.pipeline.images.samples import to_uint8

WHITE_IS_ZERO, GRAY, RGB, PALETTE, INKS, YCBCR, CIE_LAB, ICC_LAB = 0, 1, 2, 3, 5, 6, 8, 9
PHOTOMETRICS = {
    WHITE_IS_ZERO: ("gray", 1),
    GRAY: ("gray", 1),
    RGB: ("RGB", 3),
    PALETTE: ("a palette", 1),
    INKS: ("CMYK", 4),
    YCBCR: ("YCbCr", 3),
    CIE_LAB: ("CIELab", 3),
    ICC_LAB: ("ICCLab", 3),
}
"""Name and number of samples."""
OTHERS = {4: "a transparency mask alone", 10: "ITULab", 32844: "LogL (HDR)", 32845: "LogLuv (HDR)"}
ASSOCIATED, UNASSOCIATED = 1, 2
"""Extra samples that are alpha; colours are multiplied by the first kind."""
UNSIGNED, UNDEFINED = 1, 4
FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}
MOST_BITS, MOST_EXTRA = 24, 3
CMYK_INKS = 1
D50 = np.array([0.96422, 1, 0.82521], np.float32)
XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]], np.float32
)
"""From XYZ of D50, adapted to D65 (Bradford), to linear sRGB."""
SPECS = {"coefficients": (0.299, 0.587, 0.114), "reference": (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)}
"""What YCbCr has unless the file says something else."""


@dataclass(frozen=True)
class Colours:
    """How the samples of a page become 8-bit colours."""

    mode: Literal["L", "RGB", "CMYK"]
    samples: int
    """Samples of a pixel that are colours; those behind them are extra."""
    to_uint8: Callable[[np.ndarray], np.ndarray]
    """(rows, columns, samples) to uint8: (rows, columns) of gray, or (rows, columns, 3 or 4)."""
    bit_depth: int
    alpha: int | None = None
    """Which sample is transparency."""
    alpha_bits: int = 8
    is_premultiplied: bool = False
    keeps_profile: bool = True

    def of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Colours and alpha, uint8, of (rows, columns, all samples of a pixel)."""
        colours = samples[..., : self.samples]
        if self.alpha is None:
            return self.to_uint8(colours), None
        alpha = samples[..., self.alpha]
        if self.is_premultiplied:
            colours = without_alpha(colours, alpha, self.alpha_bits)
        return self.to_uint8(colours), samples_in_8(alpha, self.alpha_bits)


def colours_of(page: Page) -> Colours:
    """How to read the samples of a page.

    Raises: ImageError with the class UnsupportedMode for samples without a range, and UnsupportedFormat for other samples
        that have no meaning here.
    """
    kind = guessed_photometric(page) if page.photometric is None else page.photometric
    if kind not in PHOTOMETRICS:
        raise unsupported(f"{OTHERS.get(kind, f'photometric interpretation {kind}')}")
    check_samples(page)
    name, count = PHOTOMETRICS[kind]
    extra = page.samples - count
    if extra < 0:
        raise unsupported(f"{page.samples} samples per pixel where {name} has {count}")
    if kind == INKS and page.number(INK_SET, CMYK_INKS) != CMYK_INKS:
        raise unsupported("inks that are not CMYK")
    # An extra sample that nothing is said of is alpha; one that is said to be unspecified is not.
    kinds = page.numbers(EXTRA_SAMPLES)[:extra] if EXTRA_SAMPLES in page.entries else [UNASSOCIATED] * min(extra, 1)
    alpha = next((n for n, what in enumerate(kinds) if what in (ASSOCIATED, UNASSOCIATED)), None)
    if (extra > 1 and alpha is None and count == 1) or extra > MOST_EXTRA:
        raise unsupported(f"{page.samples} samples per pixel (multispectral)")
    if extra and kind in (YCBCR, CIE_LAB, ICC_LAB):
        raise unsupported(f"{name} with {extra} extra samples")
    return Colours(
        mode="L" if count == 1 and kind != PALETTE else "CMYK" if kind == INKS else "RGB",
        samples=count,
        to_uint8=meaning(page, kind),
        bit_depth=8 if kind == PALETTE else 1 if page.bits == 1 else max(8, page.bits),
        alpha=None if alpha is None else count + alpha,
        alpha_bits=min(page.bits, 16),
        is_premultiplied=alpha is not None and kinds[alpha] == ASSOCIATED and kind != PALETTE,
        keeps_profile=kind not in (CIE_LAB, ICC_LAB),
    )


def guessed_photometric(page: Page) -> int:
    """What a file that does not say is taken for, as libtiff does."""
    if page.samples >= 3:
        return RGB
    return WHITE_IS_ZERO if page.compression in FAX else GRAY


def check_samples(page: Page) -> None:
    """Raises: ImageError for samples that are not unsigned integers of at most 24 bits."""
    bits = page.bits
    for what in page.numbers(SAMPLE_FORMAT)[: page.samples]:
        if what not in (UNSIGNED, UNDEFINED):
            raise ImageError("UnsupportedMode", f"TIFF with {bits}-bit {FORMATS.get(what, f'format {what}')} samples")
    if bits > MOST_BITS:
        raise ImageError("UnsupportedMode", f"TIFF with {bits}-bit integer samples")
    if not (1 <= bits <= 16 or bits == MOST_BITS):
        raise unsupported(f"{bits}-bit samples")
    if page.photometric == PALETTE and bits > 16:
        raise unsupported(f"a palette of {bits} bits")


def meaning(page: Page, kind: int) -> Callable[[np.ndarray], np.ndarray]:
    """What makes 8-bit colours of the samples of a page."""
    # Samples of 24 bits come as 16.
    bits = min(page.bits, 16)
    if kind == PALETTE:
        table = palette(page)
        return lambda samples: table[samples[..., 0]]
    if kind == YCBCR and (page.compression not in JPEGS or page.is_planar):
        return lambda samples: rgb_of_ycbcr(samples, bits, page)
    if kind in (CIE_LAB, ICC_LAB):
        if bits not in (8, 16):
            raise unsupported(f"{PHOTOMETRICS[kind][0]} of {bits} bits")
        return lambda samples: rgb_of_lab(samples, bits, kind == ICC_LAB)
    table = levels(bits)[::-1] if kind == WHITE_IS_ZERO else levels(bits)
    shape = (lambda array: array[..., 0]) if kind in (WHITE_IS_ZERO, GRAY) else (lambda array: array)
    if bits == 8 and kind != WHITE_IS_ZERO:
        return shape
    return lambda samples: table[shape(samples)]


@lru_cache(maxsize=16)
def levels(bits: int) -> np.ndarray:
    """(2**bits,) uint8 by the samples of so many bits."""
    return to_uint8(np.arange(1 << bits), bits)


def samples_in_8(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples of so many bits as uint8."""
    return samples if bits == 8 else levels(bits)[samples]


def without_alpha(colours: np.ndarray, alpha: np.ndarray, bits: int) -> np.ndarray:
    """Samples that were multiplied by alpha as they were before, of the same type; 0 where nothing is left of them."""
    most, share = (1 << bits) - 1, alpha[..., None].astype(np.uint32)
    # At most 65,535 * 65,535 + 32,767, which is less than 2**32.
    whole = (colours * np.uint32(most) + share // 2) // np.maximum(share, 1)
    return np.where(share > 0, np.minimum(whole, most), 0).astype(colours.dtype)


def palette(page: Page) -> np.ndarray:
    """(2**bits, 3) uint8. Raises: ImageError when it is not whole."""
    colours = page.numbers(COLOUR_MAP)
    size = 1 << page.bits
    if len(colours) < 3 * size:
        raise broken(f"a palette of {len(colours)} numbers, not {3 * size}")
    table = np.array(colours[: 3 * size]).reshape(3, size).T
    if table.max(initial=0) < 256:
        # Some programs write 8 bits where there should be 16.
        return table.astype(np.uint8)
    # Others shift 8 bits to the left and leave the lower half empty.
    return (table >> 8 if not (table & 255).any() else to_uint8(table, 16)).astype(np.uint8)


def rgb_of_ycbcr(samples: np.ndarray, bits: int, page: Page) -> np.ndarray:
    """(rows, columns, 3) uint8 of YCbCr as TIFF 6.0 has it, section 21."""
    most = (1 << bits) - 1
    red, green, blue = page.ratios(YCBCR_COEFFICIENTS, SPECS["coefficients"])
    black = page.ratios(REFERENCE_BLACK_WHITE, SPECS["reference"])
    if black[1] > 255:
        # In samples of more than 8 bits, so are these.
        black = tuple(value * 255 / most for value in black)
    if green <= 0 or any(high - low < 1 for low, high in zip(black[::2], black[1::2], strict=True)):
        raise broken("YCbCr coefficients that mean nothing")
    y, cb, cr = (
        (samples[..., n] * np.float32(255 / most) - black[2 * n]) * (span / (black[2 * n + 1] - black[2 * n]))
        for n, span in enumerate((255, 127, 127))
    )
    r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    rgb = np.stack([r, (y - red * r - blue * b) / green, b], -1)
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def rgb_of_lab(samples: np.ndarray, bits: int, icc: bool) -> np.ndarray:
    """(rows, columns, 3) uint8 sRGB of CIELab (D50), whose a and b are signed, or of ICCLab, where they are shifted."""
    unit = np.float32(1 << bits - 8)
    if icc:
        light, a, b = np.moveaxis(samples / unit - np.array([0, 128, 128], np.float32), -1, 0)
    else:
        light = samples[..., 0] * np.float32(255 / ((1 << bits) - 1))
        a, b = np.moveaxis(samples[..., 1:].astype(f"i{bits // 8}") / unit, -1, 0)
    y = (light * (100 / 255) + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * (3 * (6 / 29) ** 2)) * D50
    linear = (xyz @ XYZ_TO_SRGB.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(srgb * 255).astype(np.uint8)
