"""Convert the samples of a TIFF to 8 bits: gray, colours, inks and alpha of any bit depth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from imagemill.pipeline.images.errors import unsupported_samples
from imagemill.pipeline.images.readers.tiff_page import (
    COLOUR_MAP,
    EXTRA_SAMPLES,
    INK_SET,
    REFERENCE_BLACK_WHITE,
    SAMPLE_FORMAT,
    YCBCR_COEFFICIENTS,
    Page,
    broken_tiff,
    unsupported_tiff,
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
"""Name and number of samples, by photometric interpretation."""
UNSUPPORTED_PHOTOMETRICS = {
    4: "only a transparency mask",
    10: "ITULab",
    32844: "LogL (HDR)",
    32845: "LogLuv (HDR)",
}
ASSOCIATED, UNASSOCIATED = 1, 2
"""Types of extra samples that are alpha. Colours are premultiplied by associated alpha."""
UNSIGNED, UNDEFINED = 1, 4
SAMPLE_FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}
MAX_BITS, MAX_EXTRA_SAMPLES = 24, 3
CMYK_INKS = 1
D50 = np.array([0.96422, 1, 0.82521], np.float32)
XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]], np.float32
)
"""From XYZ with white D50, adapted to D65 (Bradford), to linear sRGB."""
DEFAULT_COEFFICIENTS = (0.299, 0.587, 0.114)
DEFAULT_REFERENCE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)
"""Reference black and white of Y, Cb and Cr."""


@dataclass(frozen=True)
class Colours:
    """How to convert the samples of a page."""

    mode: Literal["L", "RGB", "CMYK"]
    colour_samples: int
    """How many samples of a pixel are colours. The samples after them are extra samples."""
    convert_colours: Callable[[np.ndarray], np.ndarray]
    """Converts (rows, columns, samples) to uint8: (rows, columns) of gray, or (rows, columns, 3 or 4)."""
    bit_depth: int
    alpha: int | None = None
    """Index of the sample that is alpha."""
    alpha_bits: int = 8
    is_premultiplied: bool = False
    keeps_profile: bool = True

    def convert(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Convert all samples of pixels, (rows, columns, samples), to colours and alpha, both uint8."""
        colours = samples[..., : self.colour_samples]
        if self.alpha is None:
            return self.convert_colours(colours), None
        alpha = samples[..., self.alpha]
        if self.is_premultiplied:
            colours = unpremultiply(colours, alpha, self.alpha_bits)
        return self.convert_colours(colours), convert_samples(alpha, self.alpha_bits)


def choose_colours(page: Page) -> Colours:
    """Choose how to convert the samples of a page.

    Raises:
        ImageError: with the class UnsupportedMode for samples without a defined range, or UnsupportedFormat for other
            samples that are not supported.
    """
    photometric = guess_photometric(page) if page.photometric is None else page.photometric
    if photometric not in PHOTOMETRICS:
        name = UNSUPPORTED_PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}")
        raise unsupported_tiff(name)
    check_samples(page)
    name, count = PHOTOMETRICS[photometric]
    extra = page.samples - count
    if extra < 0:
        raise unsupported_tiff(f"{page.samples} samples per pixel, but {name} needs {count},")
    if photometric == INKS and page.number(INK_SET, CMYK_INKS) != CMYK_INKS:
        raise unsupported_tiff("inks other than CMYK")
    # The first extra sample without a declared type is alpha. An extra sample that is declared as unspecified is not.
    types = page.numbers(EXTRA_SAMPLES)[:extra] if EXTRA_SAMPLES in page.entries else [UNASSOCIATED] * min(extra, 1)
    alpha = next((n for n, sample_type in enumerate(types) if sample_type in (ASSOCIATED, UNASSOCIATED)), None)
    if (extra > 1 and alpha is None and count == 1) or extra > MAX_EXTRA_SAMPLES:
        raise unsupported_tiff(f"{page.samples} samples per pixel (multispectral)")
    if extra and photometric in (YCBCR, CIE_LAB, ICC_LAB):
        raise unsupported_tiff(f"{name} and {extra} extra samples")
    return Colours(
        mode="L" if count == 1 and photometric != PALETTE else "CMYK" if photometric == INKS else "RGB",
        colour_samples=count,
        convert_colours=choose_converter(page, photometric),
        bit_depth=8 if photometric == PALETTE else 1 if page.bits == 1 else max(8, page.bits),
        alpha=None if alpha is None else count + alpha,
        alpha_bits=min(page.bits, 16),
        is_premultiplied=alpha is not None and types[alpha] == ASSOCIATED and photometric != PALETTE,
        keeps_profile=photometric not in (CIE_LAB, ICC_LAB),
    )


def guess_photometric(page: Page) -> int:
    """Guess a missing photometric interpretation like libtiff."""
    if page.samples >= 3:
        return RGB
    return WHITE_IS_ZERO if page.compression in FAX else GRAY


def check_samples(page: Page) -> None:
    """Check that samples are unsigned integers of at most 24 bits.

    Raises:
        ImageError: with the class UnsupportedMode or UnsupportedFormat.
    """
    bits = page.bits
    for sample_format in page.numbers(SAMPLE_FORMAT)[: page.samples]:
        if sample_format not in (UNSIGNED, UNDEFINED):
            name = SAMPLE_FORMATS.get(sample_format, f"format {sample_format}")
            raise unsupported_samples(f"TIFF with {bits}-bit {name} samples")
    if bits > MAX_BITS:
        raise unsupported_samples(f"TIFF with {bits}-bit integer samples")
    if not (1 <= bits <= 16 or bits == MAX_BITS):
        raise unsupported_tiff(f"{bits}-bit samples")
    if page.photometric == PALETTE and bits > 16:
        raise unsupported_tiff(f"a palette of {bits} bits")


def choose_converter(page: Page, photometric: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that converts the colour samples of a page to 8 bits."""
    # 24-bit samples are decoded to 16 bits.
    bits = min(page.bits, 16)
    if photometric == PALETTE:
        table = read_palette(page)
        return lambda samples: table[samples[..., 0]]
    if photometric == YCBCR and (page.compression not in JPEGS or page.is_planar):
        return lambda samples: ycbcr_to_rgb(samples, bits, page)
    if photometric in (CIE_LAB, ICC_LAB):
        if bits not in (8, 16):
            raise unsupported_tiff(f"{PHOTOMETRICS[photometric][0]} of {bits} bits")
        return lambda samples: lab_to_srgb(samples, bits, photometric == ICC_LAB)
    table = level_table(bits)[::-1] if photometric == WHITE_IS_ZERO else level_table(bits)
    is_gray = photometric in (WHITE_IS_ZERO, GRAY)
    select = (lambda samples: samples[..., 0]) if is_gray else (lambda samples: samples)
    if bits == 8 and photometric != WHITE_IS_ZERO:
        return select
    return lambda samples: table[select(samples)]


@lru_cache(maxsize=16)
def level_table(bits: int) -> np.ndarray:
    """Return (2**bits,) uint8: the 8-bit value of each sample of a bit depth."""
    return to_uint8(np.arange(1 << bits), bits)


def convert_samples(samples: np.ndarray, bits: int) -> np.ndarray:
    """Convert samples of a bit depth to uint8."""
    return samples if bits == 8 else level_table(bits)[samples]


def unpremultiply(colours: np.ndarray, alpha: np.ndarray, bits: int) -> np.ndarray:
    """Divide colours by alpha, in the same dtype; 0 where alpha is 0.

    Args:
        colours: (rows, columns, samples), premultiplied.
        alpha: (rows, columns).
        bits: bit depth of colours and alpha, at most 16.
    """
    sample_max, divisor = (1 << bits) - 1, alpha[..., None].astype(np.uint32)
    # At most 65,535 * 65,535 + 32,767, which is less than 2**32.
    quotient = (colours * np.uint32(sample_max) + divisor // 2) // np.maximum(divisor, 1)
    return np.where(divisor > 0, np.minimum(quotient, sample_max), 0).astype(colours.dtype)


def read_palette(page: Page) -> np.ndarray:
    """Read the palette as (2**bits,3) uint8.

    Raises:
        ImageError: with the class BrokenImage, if the palette is incomplete.
    """
    colours = page.numbers(COLOUR_MAP)
    size = 1 << page.bits
    if len(colours) < 3 * size:
        raise broken_tiff(f"the palette has {len(colours)} numbers instead of {3 * size}")
    table = np.array(colours[: 3 * size]).reshape(3, size).T
    if table.max(initial=0) < 256:
        # Some programs write 8-bit colours instead of 16-bit ones.
        return table.astype(np.uint8)
    # Others shift 8 bits to the left and leave the lower byte zero.
    return (table >> 8 if not (table & 255).any() else to_uint8(table, 16)).astype(np.uint8)


def ycbcr_to_rgb(samples: np.ndarray, bits: int, page: Page) -> np.ndarray:
    """Convert YCbCr to (rows, columns, 3) uint8: TIFF 6.0, section 21.

    Raises:
        ImageError: with the class BrokenImage, for invalid coefficients.
    """
    sample_max = (1 << bits) - 1
    red, green, blue = page.ratios(YCBCR_COEFFICIENTS, DEFAULT_COEFFICIENTS)
    reference = page.ratios(REFERENCE_BLACK_WHITE, DEFAULT_REFERENCE)
    if reference[1] > 255:
        # The reference values have the bit depth of the samples.
        reference = tuple(value * 255 / sample_max for value in reference)
    if green <= 0 or any(white - black < 1 for black, white in zip(reference[::2], reference[1::2], strict=True)):
        raise broken_tiff("the YCbCr coefficients are invalid")
    y, cb, cr = (
        (samples[..., n] * np.float32(255 / sample_max) - reference[2 * n])
        * (span / (reference[2 * n + 1] - reference[2 * n]))
        for n, span in enumerate((255, 127, 127))
    )
    r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    rgb = np.stack([r, (y - red * r - blue * b) / green, b], -1)
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def lab_to_srgb(samples: np.ndarray, bits: int, is_icc: bool) -> np.ndarray:
    """Convert CIELab (D50) to (rows, columns, 3) uint8 sRGB.

    Args:
        samples: (rows, columns, 3).
        bits: 8 or 16.
        is_icc: whether a and b are unsigned with an offset (ICCLab) instead of signed (CIELab).
    """
    unit = np.float32(1 << bits - 8)
    if is_icc:
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
