"""Convert colour spaces that a file declares without an ICC profile to sRGB.

PNG (gAMA, cHRM, cICP), AVIF (nclx), JPEG 2000 and BMP declare primaries and a transfer function. Their code points
follow ITU-T H.273 ("coding-independent code points", CICP). HDR images (PQ, HLG) are tone mapped to SDR:

- Diffuse white is 203 cd/m² (ITU-R BT.2408) and becomes sRGB white.
- The curve is the EETF of ITU-R BT.2390, section 5.4.1, applied in the PQ domain to the largest of R, G and B. All three are
  scaled by the same factor, which preserves the hue.
- The source peak is the brightest sample of the image. An image that is nowhere brighter than diffuse white is not changed.
- HLG is rendered for a display of 1000 cd/m² with system gamma 1.2 (ITU-R BT.2100, table 5).

Colours outside sRGB are clipped in linear light.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Primaries = tuple[float, float, float, float, float, float, float, float]
"""CIE 1931 x and y of red, green, blue and white."""

D65 = (0.3127, 0.3290)
ILLUMINANT_C = (0.310, 0.316)
SRGB: Primaries = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *D65)
PRIMARIES: dict[int, tuple[str, Primaries]] = {
    1: ("BT.709", SRGB),
    4: ("BT.470 M", (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *ILLUMINANT_C)),
    5: ("BT.470 BG", (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *D65)),
    6: ("SMPTE 170M", (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65)),
    7: ("SMPTE 240M", (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65)),
    8: ("generic film", (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, *ILLUMINANT_C)),
    9: ("BT.2020", (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65)),
    10: ("XYZ", (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1 / 3, 1 / 3)),
    11: ("DCI P3", (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351)),
    12: ("Display P3", (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65)),
    22: ("EBU 3213", (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *D65)),
}
"""Name and chromaticities by code point: ITU-T H.273, table 2."""
UNSPECIFIED = 2
REFERENCE_WHITE = 203.0
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
PQ_PEAK = 10_000.0
CHROMATICITY_TOLERANCE, GAMMA_TOLERANCE = 0.005, 0.05
"""The largest difference of a chromaticity, and the largest relative difference of gamma (as in libpng), that counts as
rounding."""
SRGB_GAMMA = 2.2
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

Curve = Callable[[np.ndarray], np.ndarray]
"""Maps a float64 signal in 0..1 to linear light of the same shape, where 1 is diffuse white."""


def srgb_to_linear(v: np.ndarray) -> np.ndarray:
    """Apply the sRGB transfer function: IEC 61966-2-1."""
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def pq_to_nits(v: np.ndarray) -> np.ndarray:
    """Apply the PQ electro-optical transfer function, SMPTE ST 2084: 0..1 to 0..10,000 cd/m²."""
    p = v ** (32 / 2523)
    return PQ_PEAK * (np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)) ** (8192 / 1305)


def nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """Apply the inverse of `pq_to_nits`."""
    y = (nits / PQ_PEAK) ** (1305 / 8192)
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** (2523 / 32)


def hlg_to_scene(v: np.ndarray) -> np.ndarray:
    """Apply the inverse HLG transfer function, ITU-R BT.2100: 0..1 to scene light 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(v <= 0.5, v * v / 3, (np.exp((v - c) / a) + b) / 12)


def smpte_240m_to_linear(v: np.ndarray) -> np.ndarray:
    """Apply the inverse of the SMPTE 240M transfer function."""
    return np.where(v < 4 * 0.022821585529445, v / 4, ((v + 0.111572195921731) / 1.111572195921731) ** (1 / 0.45))


def logarithmic_curve(decades: float) -> Curve:
    """Return a logarithmic curve of H.273: code points 9 (2 decades) and 10 (2.5 decades)."""
    return lambda v: np.where(v > 0, 10 ** (decades * (v - 1)), 0)


CURVES: dict[int, tuple[str, Curve | float]] = {
    4: ("gamma 2.2", 2.2),
    5: ("gamma 2.8", 2.8),
    7: ("SMPTE 240M", smpte_240m_to_linear),
    8: ("linear", 1.0),
    9: ("logarithmic 100:1", logarithmic_curve(2)),
    10: ("logarithmic 316:1", logarithmic_curve(2.5)),
    13: ("sRGB", srgb_to_linear),
    16: ("PQ", lambda v: pq_to_nits(v) / REFERENCE_WHITE),
    17: ("SMPTE 428", lambda v: v**2.6 * 52.37 / 48),
    18: ("HLG", hlg_to_scene),
}
"""Name and transfer function by code point: ITU-T H.273, table 3. `parse_cicp` says why video curves are missing."""
VIDEO_CURVES = {1: "BT.709", 6: "SMPTE 170M", 11: "xvYCC", 12: "BT.1361", 14: "BT.2020", 15: "BT.2020"}


@dataclass(frozen=True)
class ColourSpace:
    """A colour space of RGB or gray samples, given by primaries and a transfer function."""

    primaries: Primaries = SRGB
    curve: Curve | float = srgb_to_linear
    """The transfer function; a number is the exponent gamma."""
    name: str = "sRGB"

    @property
    def is_srgb(self) -> bool:
        """Whether samples can be used as sRGB without conversion."""
        is_srgb_gamma = isinstance(self.curve, float) and abs(self.curve / SRGB_GAMMA - 1) < GAMMA_TOLERANCE
        return self.has_srgb_primaries and (is_srgb_gamma or self.curve is srgb_to_linear)

    @property
    def has_srgb_primaries(self) -> bool:
        """Whether the primaries and the white point are those of sRGB."""
        return max(abs(a - b) for a, b in zip(self.primaries, SRGB, strict=True)) < CHROMATICITY_TOLERANCE

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer function is PQ or HLG."""
        return self.curve in (CURVES[16][1], CURVES[18][1])


def parse_cicp(primaries: int, transfer: int) -> tuple[ColourSpace | None, str]:
    """Return the colour space of two H.273 code points.

    The video curves describe a camera. Screens show video much like sRGB, so samples with a video curve are used as
    sRGB, as in Chrome; the inverse of the camera's curve would make them too bright.

    Returns:
        The colour space, or None if both code points are unspecified; and what was ignored, or "".
    """
    if primaries == transfer == UNSPECIFIED:
        return None, ""
    name, chromaticities = PRIMARIES.get(primaries, ("sRGB", SRGB))
    ignored = "" if primaries in (UNSPECIFIED, *PRIMARIES) else f"primaries {primaries}"
    if transfer in CURVES:
        curve_name, curve = CURVES[transfer]
    else:
        curve_name, curve = "sRGB", srgb_to_linear
        if transfer != UNSPECIFIED:
            ignored = ignored or f"transfer function {VIDEO_CURVES.get(transfer, transfer)}"
    return ColourSpace(chromaticities, curve, f"{name} {curve_name}"), ignored


def matrix_to_xyz(primaries: Primaries) -> np.ndarray:
    """Return the matrix (3,3) from linear RGB to CIE XYZ.

    Raises:
        ValueError: if the primaries are collinear or white is black.
    """
    columns = np.array([[x, y, 1 - x - y] for x, y in zip(primaries[0::2], primaries[1::2], strict=True)]).T
    rgb, white = columns[:, :3], columns[:, 3]
    if abs(np.linalg.det(rgb)) < 1e-6 or white[1] <= 0:
        raise ValueError("invalid primaries")
    return rgb * np.linalg.solve(rgb, white / white[1])


def matrix_to_linear_srgb(primaries: Primaries) -> np.ndarray:
    """Return the matrix (3,3) from linear RGB to linear sRGB.

    The white point is adapted by Bradford's method.

    Raises:
        ValueError: as `matrix_to_xyz`.
    """
    source, target = matrix_to_xyz(primaries), matrix_to_xyz(SRGB)
    cones = BRADFORD @ np.stack([source.sum(1), target.sum(1)], 1)
    adaptation = np.linalg.solve(BRADFORD, np.diag(cones[:, 1] / cones[:, 0]) @ BRADFORD)
    return np.linalg.solve(target, adaptation @ source)


def eetf(nits: np.ndarray, peak: float) -> np.ndarray:
    """Compress light into the range up to diffuse white: ITU-R BT.2390, section 5.4.1.

    Args:
        nits: light in cd/m².
        peak: the brightest light of the source in cd/m², above diffuse white.
    """
    source_peak = nits_to_pq(np.array(peak))
    signal = nits_to_pq(nits) / source_peak
    target_peak = nits_to_pq(np.array(REFERENCE_WHITE)) / source_peak
    knee = 1.5 * target_peak - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * target_peak
    return pq_to_nits(np.where(signal < knee, signal, spline) * source_peak)


@lru_cache(maxsize=1)
def srgb_table() -> np.ndarray:
    """Return (65536,) uint8: the sRGB sample of each level of linear light; 65535 is white."""
    light = np.arange(65536) / 65535
    return np.round(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(np.uint8)


class SrgbConversion:
    """Converts samples of one image to sRGB. Call it with any part of the image.

    Args:
        space: the colour space of the image.
        dtype: uint8 or uint16, whose full range the samples use.
        is_gray: whether the samples are gray rather than RGB.
        max_sample: the largest sample of the image. It is the source peak of HDR tone mapping.

    Raises:
        ValueError: if the primaries are invalid.
    """

    def __init__(self, space: ColourSpace, dtype: np.dtype, is_gray: bool, max_sample: int) -> None:
        self.is_gray, self.is_hlg = is_gray, space.curve is CURVES[18][1]
        signal = np.arange(np.iinfo(dtype).max + 1) / np.iinfo(dtype).max
        light = signal**space.curve if isinstance(space.curve, float) else space.curve(signal)
        self.luma = matrix_to_xyz(space.primaries)[1].astype(np.float32)
        self.linear = light.astype(np.float32)
        self.matrix: np.ndarray | None = None
        if not is_gray and not space.has_srgb_primaries:
            self.matrix = matrix_to_linear_srgb(space.primaries).T.astype(np.float32)
        self.gains: np.ndarray | None = None
        peak = float(light[max_sample])
        peak = HLG_PEAK * peak**HLG_GAMMA if self.is_hlg else peak * REFERENCE_WHITE
        if space.is_hdr and peak > REFERENCE_WHITE:
            # The table is indexed by the fourth root of light, which is close to PQ and cheap to compute.
            nits = PQ_PEAK * (np.arange(1, 65537) / 65536) ** 4
            self.gains = (eetf(nits, peak) / nits).astype(np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Convert (H,W) gray or (H,W,3) RGB of the image's dtype to sRGB uint8 of the same shape."""
        light = self.linear[samples]
        if self.is_hlg:
            luminance = light if self.is_gray else light @ self.luma
            gain = luminance ** np.float32(HLG_GAMMA - 1) * np.float32(HLG_PEAK / REFERENCE_WHITE)
            light *= gain if self.is_gray else gain[..., None]
        if self.gains is not None:
            brightest = light if self.is_gray else light.max(-1)
            root = np.sqrt(np.sqrt(brightest * np.float32(REFERENCE_WHITE / PQ_PEAK)))
            gain = self.gains[(root * 65535).astype(np.uint16)]
            light *= gain if self.is_gray else gain[..., None]
        if self.matrix is not None:
            light = light @ self.matrix
        np.clip(light, 0, 1, out=light)
        light *= 65535
        light += 0.5
        return srgb_table()[light.astype(np.uint16)]
