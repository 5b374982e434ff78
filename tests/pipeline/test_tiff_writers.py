"""TIFFs of all option combinations are decoded exactly, or rejected with the cause."""

import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.errors import ImageError
from tests.support.sample_images import scene
from tests.support.tiffs import encode_tiff

H, W = 37, 21
LOSSLESS = (None, "deflate", "lzw", "packbits", "lzma", "zstd", "lerc", "png", "jpegxl", "jpegxr")
LOSSY = ("jpeg", "webp", "jpeg2000")
TURNS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.swapaxes(0, 1),
    lambda a: np.rot90(a, -1),
    lambda a: a[::-1, ::-1].swapaxes(0, 1),
    lambda a: np.rot90(a),
)
"""Functions that turn a stored array upright, by orientation minus one."""
COLOURS = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "palette": 1, "separated": 4, "ycbcr": 3}
NUMBERS = {"miniswhite": 0, "minisblack": 1, "rgb": 2, "separated": 5}
"""Photometric interpretations that allow every bit depth."""
EXTRA = ("none", "assocalpha", "unassalpha", "unspecified", "two unspecified")
LAYOUTS: tuple[dict[str, Any], ...] = ({"rowsperstrip": 1000}, {"rowsperstrip": 5}, {"tile": (16, 16)})
# A reject must name the property that is not supported.
REASON = re.compile(r"^TIFF with .+ (is not supported|samples are not supported)\. Convert the file")


@dataclass(frozen=True)
class Variant:
    """One combination of a writer's options."""

    colours: str
    bits: int
    extra: str
    planar: bool
    compression: str | None
    predictor: bool
    layout: dict[str, Any]
    order: str
    big: bool
    orientation: int

    @property
    def extra_samples(self) -> tuple[str, ...]:
        return {"none": (), "two unspecified": ("unspecified", "unspecified")}.get(self.extra, (self.extra,))


def all_variants() -> Iterator[Variant]:
    """Yield all combinations of tifffile's options, each with one random orientation."""
    orientations = random.Random(0)
    for colours, bits, extra, planar, compression, predictor, layout, order, big in product(
        COLOURS, (8, 16), EXTRA, (False, True), (*LOSSLESS, *LOSSY), (False, True), LAYOUTS, "<>", (False, True)
    ):
        yield Variant(colours, bits, extra, planar, compression, predictor, layout, order, big, orientations.randint(1, 8))


def random_samples(variant: Variant) -> np.ndarray:
    """Return (H,W,S) samples: random, but smooth for lossy compressions."""
    count = COLOURS[variant.colours] + len(variant.extra_samples)
    if variant.compression in LOSSY:
        smooth = np.concatenate([scene(H, W), scene(H, W)[::-1, ::-1]], -1)[..., :count]
        return smooth.astype(np.uint16) * 257 if variant.bits == 16 else smooth
    samples = np.random.default_rng(count).integers(0, 1 << variant.bits, (H, W, count)).astype(f"u{variant.bits // 8}")
    if variant.extra == "assocalpha":
        # Premultiplied colours are at most their alpha.
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    return samples


def random_colour_map(bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 65536, (3, 1 << bits)).astype(np.uint16)


def encode_variant(variant: Variant, samples: np.ndarray) -> bytes | None:
    """Encode with tifffile; None if its writer does not support the combination."""
    options: dict[str, Any] = {"colormap": random_colour_map(variant.bits)} if variant.colours == "palette" else {}
    data = np.moveaxis(samples, -1, 0) if variant.planar else samples
    if samples.shape[2] == 1:
        data = samples[..., 0]
    else:
        options["planarconfig"] = "separate" if variant.planar else "contig"
    out = io.BytesIO()
    try:
        tifffile.imwrite(
            out,
            data,
            photometric=variant.colours,
            extrasamples=variant.extra_samples or None,
            compression=variant.compression,
            predictor=variant.predictor,
            byteorder=variant.order,
            bigtiff=variant.big,
            metadata=None,
            extratags=[(274, 3, 1, variant.orientation, True)],
            **variant.layout,
            **options,
        )
    except (ValueError, NotImplementedError, RuntimeError, TypeError, KeyError):
        return None
    return out.getvalue()


def is_decoded_by_tifffile(data: bytes, variant: Variant, samples: np.ndarray) -> bool:
    """Return whether tifffile reads what it wrote.

    It packs five samples in five rows as JPEG 2000 in the wrong order.
    """
    stored_samples = tifffile.imread(io.BytesIO(data))
    if variant.planar and samples.shape[2] > 1:
        stored_samples = np.moveaxis(stored_samples, 0, -1)
    high = [(array >> variant.bits - 8).astype(np.uint8) for array in (stored_samples.reshape(samples.shape), samples)]
    return psnr_db(*high) > 25


def decode_or_reason(data: bytes) -> DecodedImage | str:
    """Decode a file; return the reject's reason if it names an unsupported property."""
    try:
        return decode_image(data)
    except ImageError as e:
        if e.error_class in ("UnsupportedFormat", "UnsupportedMode") and REASON.match(str(e)):
            return str(e)
        raise


def expected_colours(samples: np.ndarray, bits: int, colours: str, alpha: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return colours (H,W,C) and alpha in 0..255, not rounded, as TIFF 6.0 defines them."""
    sample_max, count = (1 << bits) - 1, COLOURS[colours]
    expected = (
        random_colour_map(bits).T[samples[..., 0]] / 257 if colours == "palette" else samples[..., :count] / sample_max * 255
    )
    opacity = samples[..., count] / sample_max if alpha in ("assocalpha", "unassalpha") else None
    if alpha == "assocalpha" and colours != "palette":
        expected = np.divide(expected, opacity[..., None], out=np.zeros_like(expected), where=opacity[..., None] > 0).clip(
            0, 255
        )
    if colours == "miniswhite":
        expected = 255 - expected
    if colours == "ycbcr":
        y, cb, cr = np.moveaxis(expected, -1, 0) - np.array([0, 128, 128])[:, None, None]
        r, b = y + 1.402 * cr, y + 1.772 * cb
        expected = np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], -1).clip(0, 255)
    return expected, None if opacity is None else opacity * 255


def is_decoded_correctly(decoded: DecodedImage, variant: Variant, samples: np.ndarray) -> bool:
    """Return whether a decoded image shows what was encoded."""
    expected, alpha = expected_colours(samples, variant.bits, variant.colours, variant.extra)
    if variant.colours == "separated":
        expected = np.asarray(
            Image.frombytes("CMYK", (W, H), np.rint(expected).astype(np.uint8).tobytes()).convert("RGB"), float
        )
    turn_upright = TURNS[variant.orientation - 1]
    if (alpha is None) != (decoded.alpha is None) or decoded.has_alpha != (alpha is not None):
        return False
    if (
        decoded.is_gray != (variant.colours in ("miniswhite", "minisblack"))
        or decoded.exif_orientation != variant.orientation
    ):
        return False
    if decoded.bit_depth != (8 if variant.colours == "palette" else variant.bits):
        return False
    expected = turn_upright(np.broadcast_to(expected, (H, W, 3)))
    if variant.compression in LOSSY:
        return psnr_db(decoded.rgb, np.rint(expected).astype(np.uint8)) > 25
    is_visible = np.ones(expected.shape[:2], bool) if alpha is None else turn_upright(np.rint(alpha)) > 0
    tolerance = 0.51 if variant.colours in ("miniswhite", "minisblack", "rgb", "palette") else 1.01
    return bool(np.abs(decoded.rgb - expected)[is_visible].max(initial=0) <= tolerance) and (
        alpha is None or bool(np.abs(decoded.alpha - turn_upright(alpha)).max() <= 0.51)
    )


@pytest.mark.parametrize("count", [300, pytest.param(None, marks=pytest.mark.chaos)])
def test_tiff_of_tifffile_is_exact_or_named(count: int | None) -> None:
    variants = list(all_variants())
    sample_of_variants = variants if count is None else random.Random(1).sample(variants, count)
    outcomes: Counter[str] = Counter()
    failures = []
    for variant in sample_of_variants:
        samples = random_samples(variant)
        data = encode_variant(variant, samples)
        if data is None:
            outcomes["not supported by tifffile"] += 1
            continue
        try:
            decoded = decode_or_reason(data)
        except ImageError:
            if is_decoded_by_tifffile(data, variant, samples):
                raise
            decoded = "encoded wrongly"
        if isinstance(decoded, str):
            outcomes[decoded] += 1
            continue
        outcomes["exact"] += 1
        if not is_decoded_correctly(decoded, variant, samples):
            failures.append(variant)
    assert not failures, f"{len(failures)} of {len(sample_of_variants)}: {failures[:5]}"
    assert outcomes["exact"] > len(sample_of_variants) / 4


def uncompressed_variants() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (colours, bits, options of `tiff`) for every depth, uncompressed or deflated."""
    for colours, bits, planar, layout, fill_order, deflate, order, big in product(
        NUMBERS,
        (*range(1, 17), 24),
        (False, True),
        ({}, {"rows": 5}, {"tile": 16}),
        (1, 2),
        (False, True),
        "<>",
        (False, True),
    ):
        yield (
            colours,
            bits,
            {"planar": planar, "fill_order": fill_order, "deflate": deflate, "order": order, "big": big, **layout},
        )


@pytest.mark.parametrize("count", [400, pytest.param(None, marks=pytest.mark.chaos)])
def test_tiff_samples_of_any_depth_are_exact(count: int | None) -> None:
    """10, 12 and 14 bits were once 16 times too dark, and white-is-zero was inverted."""
    variants = list(uncompressed_variants())
    for colours, bits, options in variants if count is None else random.Random(2).sample(variants, count):
        samples = np.random.default_rng(bits).integers(0, 1 << bits, (H, W, COLOURS[colours]))
        decoded = decode_image(encode_tiff(samples, bits, NUMBERS[colours], **options))
        expected, _ = expected_colours(samples, bits, colours, "none")
        if colours == "separated":
            inks = np.rint(expected).astype(np.uint8)
            expected = np.asarray(Image.frombytes("CMYK", (W, H), inks.tobytes()).convert("RGB"), float)
        assert np.abs(decoded.rgb - expected).max() <= (1.01 if colours == "separated" else 0.51), (colours, bits, options)
        assert decoded.bit_depth == (1 if bits == 1 else max(8, bits))
        assert decoded.is_gray == (len(expected[0, 0]) == 1)


PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B")
PILLOW_COMPRESSIONS = (
    *(None, "group3", "group4", "jpeg", "lzma", "packbits", "tiff_adobe_deflate", "tiff_ccitt", "tiff_deflate"),
    *("tiff_lzw", "tiff_raw_16", "tiff_sgilog", "tiff_thunderscan", "webp", "zstd"),
)


@pytest.mark.parametrize("mode", PILLOW_MODES)
def test_tiff_of_pillow_is_exact_or_named(mode: str) -> None:
    rgb = Image.fromarray(scene(H, W))
    image = {
        "I;16": lambda: Image.fromarray(scene(H, W)[..., 0].astype(np.uint16) * 257),
        "I;16B": lambda: Image.fromarray((scene(H, W)[..., 0].astype(np.uint16) * 257).astype(">u2")),
        "LAB": lambda: to_lab(scene(H, W)),
        "P": lambda: rgb.quantize(64),
        "PA": lambda: rgb.quantize(64).convert("PA"),
    }.get(mode, lambda: rgb.convert(mode))()
    if mode in ("LA", "PA", "RGBA"):
        image.putalpha(Image.fromarray(scene(H, W)[..., 1]))
    expected = (image.convert("L") if mode in ("1", "L", "LA") else rgb if mode in ("LAB", "YCbCr") else image).convert(
        "RGB"
    )
    if mode.startswith("I"):
        expected = Image.fromarray(scene(H, W)[..., 0]).convert("RGB")
    exact_count = 0
    for compression in PILLOW_COMPRESSIONS:
        out = io.BytesIO()
        try:
            image.save(out, "TIFF", compression=compression)
        except (OSError, ValueError, RuntimeError, KeyError):
            continue
        decoded = decode_or_reason(out.getvalue())
        if isinstance(decoded, str):
            continue
        exact_count += 1
        is_lossy = compression in ("jpeg", "webp") or mode in ("LAB", "YCbCr")
        assert psnr_db(decoded.rgb, np.asarray(expected)) > (30 if is_lossy else 50), compression
        assert decoded.has_alpha == (mode in ("LA", "PA", "RGBA")), compression
    assert exact_count


def to_lab(rgb: np.ndarray) -> Image.Image:
    """Convert to CIELab (D50) as ICC profiles define it."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(Image.fromarray(rgb), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
