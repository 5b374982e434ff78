"""TIFFs in every combination that their writers offer are read right, or refused by the name of what they have."""

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
from tests.support.tiffs import tiff

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
"""What is seen of a stored array, by the orientation less one."""
COLOURS = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "palette": 1, "separated": 4, "ycbcr": 3}
NUMBERS = {"miniswhite": 0, "minisblack": 1, "rgb": 2, "separated": 5}
"""Those of every depth."""
EXTRA = ("none", "assocalpha", "unassalpha", "unspecified", "two unspecified")
LAYOUTS: tuple[dict[str, Any], ...] = ({"rowsperstrip": 1000}, {"rowsperstrip": 5}, {"tile": (16, 16)})
# The reject says which property of the file is not supported.
REASON = re.compile(r"^TIFF with .+ (is not supported|samples are not supported)\. Convert the file")


@dataclass(frozen=True)
class Kind:
    """One combination."""

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
    def extras(self) -> tuple[str, ...]:
        return {"none": (), "two unspecified": ("unspecified", "unspecified")}.get(self.extra, (self.extra,))


def kinds() -> Iterator[Kind]:
    """All combinations of what tifffile's writer offers, but of orientations only some."""
    orientations = random.Random(0)
    for colours, bits, extra, planar, compression, predictor, layout, order, big in product(
        COLOURS, (8, 16), EXTRA, (False, True), (*LOSSLESS, *LOSSY), (False, True), LAYOUTS, "<>", (False, True)
    ):
        yield Kind(colours, bits, extra, planar, compression, predictor, layout, order, big, orientations.randint(1, 8))


def samples_of(kind: Kind) -> np.ndarray:
    """(H,W,S) samples: at random, but smooth where they are stored lossily."""
    count = COLOURS[kind.colours] + len(kind.extras)
    if kind.compression in LOSSY:
        smooth = np.concatenate([scene(H, W), scene(H, W)[::-1, ::-1]], -1)[..., :count]
        return smooth.astype(np.uint16) * 257 if kind.bits == 16 else smooth
    samples = np.random.default_rng(count).integers(0, 1 << kind.bits, (H, W, count)).astype(f"u{kind.bits // 8}")
    if kind.extra == "assocalpha":
        # Premultiplied colours are at most their alpha.
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    return samples


def colour_map(bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 65536, (3, 1 << bits)).astype(np.uint16)


def written(kind: Kind, samples: np.ndarray) -> bytes | None:
    """The file by tifffile; None where its writer does not offer the combination."""
    options: dict[str, Any] = {"colormap": colour_map(kind.bits)} if kind.colours == "palette" else {}
    data = np.moveaxis(samples, -1, 0) if kind.planar else samples
    if samples.shape[2] == 1:
        data = samples[..., 0]
    else:
        options["planarconfig"] = "separate" if kind.planar else "contig"
    out = io.BytesIO()
    try:
        tifffile.imwrite(
            out,
            data,
            photometric=kind.colours,
            extrasamples=kind.extras or None,
            compression=kind.compression,
            predictor=kind.predictor,
            byteorder=kind.order,
            bigtiff=kind.big,
            metadata=None,
            extratags=[(274, 3, 1, kind.orientation, True)],
            **kind.layout,
            **options,
        )
    except (ValueError, NotImplementedError, RuntimeError, TypeError, KeyError):
        return None
    return out.getvalue()


def is_read_back(data: bytes, kind: Kind, samples: np.ndarray) -> bool:
    """Whether tifffile reads what it wrote: it packs five samples in five rows as JPEG 2000 the wrong way round."""
    stored = tifffile.imread(io.BytesIO(data))
    if kind.planar and samples.shape[2] > 1:
        stored = np.moveaxis(stored, 0, -1)
    high = [(array >> kind.bits - 8).astype(np.uint8) for array in (stored.reshape(samples.shape), samples)]
    return psnr_db(*high) > 25


def picture_or_reason(data: bytes) -> DecodedImage | str:
    """A picture, or the property that is not supported; nothing else is an answer to a whole file."""
    try:
        return decode_image(data)
    except ImageError as e:
        if e.error_class in ("UnsupportedFormat", "UnsupportedMode") and REASON.match(str(e)):
            return str(e)
        raise


def truth(samples: np.ndarray, bits: int, colours: str, alpha: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(H,W,1), (H,W,3) or (H,W,4) colours and alpha in 0 to 255, not rounded, by TIFF 6.0."""
    most, count = (1 << bits) - 1, COLOURS[colours]
    shown = colour_map(bits).T[samples[..., 0]] / 257 if colours == "palette" else samples[..., :count] / most * 255
    share = samples[..., count] / most if alpha in ("assocalpha", "unassalpha") else None
    if alpha == "assocalpha" and colours != "palette":
        shown = np.divide(shown, share[..., None], out=np.zeros_like(shown), where=share[..., None] > 0).clip(0, 255)
    if colours == "miniswhite":
        shown = 255 - shown
    if colours == "ycbcr":
        y, cb, cr = np.moveaxis(shown, -1, 0) - np.array([0, 128, 128])[:, None, None]
        r, b = y + 1.402 * cr, y + 1.772 * cb
        shown = np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], -1).clip(0, 255)
    return shown, None if share is None else share * 255


def is_right(picture: DecodedImage, kind: Kind, samples: np.ndarray) -> bool:
    """Whether a picture shows what was written."""
    shown, alpha = truth(samples, kind.bits, kind.colours, kind.extra)
    if kind.colours == "separated":
        shown = np.asarray(Image.frombytes("CMYK", (W, H), np.rint(shown).astype(np.uint8).tobytes()).convert("RGB"), float)
    turned = TURNS[kind.orientation - 1]
    if (alpha is None) != (picture.alpha is None) or picture.has_alpha != (alpha is not None):
        return False
    if picture.is_gray != (kind.colours in ("miniswhite", "minisblack")) or picture.exif_orientation != kind.orientation:
        return False
    if picture.bit_depth != (8 if kind.colours == "palette" else kind.bits):
        return False
    shown = turned(np.broadcast_to(shown, (H, W, 3)))
    if kind.compression in LOSSY:
        return psnr_db(picture.rgb, np.rint(shown).astype(np.uint8)) > 25
    visible = np.ones(shown.shape[:2], bool) if alpha is None else turned(np.rint(alpha)) > 0
    within = 0.51 if kind.colours in ("miniswhite", "minisblack", "rgb", "palette") else 1.01
    return bool(np.abs(picture.rgb - shown)[visible].max(initial=0) <= within) and (
        alpha is None or bool(np.abs(picture.alpha - turned(alpha)).max() <= 0.51)
    )


@pytest.mark.parametrize("count", [300, pytest.param(None, marks=pytest.mark.chaos)])
def test_what_tifffile_writes_is_read_right_or_refused(count: int | None) -> None:
    every = list(kinds())
    chosen = every if count is None else random.Random(1).sample(every, count)
    ends: Counter[str] = Counter()
    wrong = []
    for kind in chosen:
        samples = samples_of(kind)
        data = written(kind, samples)
        if data is None:
            ends["not offered"] += 1
            continue
        try:
            picture = picture_or_reason(data)
        except ImageError:
            if is_read_back(data, kind, samples):
                raise
            picture = "written wrong"
        if isinstance(picture, str):
            ends[picture] += 1
            continue
        ends["right"] += 1
        if not is_right(picture, kind, samples):
            wrong.append(kind)
    assert not wrong, f"{len(wrong)} of {len(chosen)}: {wrong[:5]}"
    assert ends["right"] > len(chosen) / 4


def plain_kinds() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(colours, bits, options of `tiff`) of samples of every depth that are not compressed, or by deflate."""
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
def test_samples_of_any_depth_are_read_right(count: int | None) -> None:
    """10, 12 and 14 bits came out 16 times too dark, and white-is-zero negative."""
    every = list(plain_kinds())
    for colours, bits, options in every if count is None else random.Random(2).sample(every, count):
        samples = np.random.default_rng(bits).integers(0, 1 << bits, (H, W, COLOURS[colours]))
        picture = decode_image(tiff(samples, bits, NUMBERS[colours], **options))
        shown, _ = truth(samples, bits, colours, "none")
        if colours == "separated":
            inks = np.rint(shown).astype(np.uint8)
            shown = np.asarray(Image.frombytes("CMYK", (W, H), inks.tobytes()).convert("RGB"), float)
        assert np.abs(picture.rgb - shown).max() <= (1.01 if colours == "separated" else 0.51), (colours, bits, options)
        assert picture.bit_depth == (1 if bits == 1 else max(8, bits))
        assert picture.is_gray == (len(shown[0, 0]) == 1)


PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B")
PILLOW_COMPRESSIONS = (
    *(None, "group3", "group4", "jpeg", "lzma", "packbits", "tiff_adobe_deflate", "tiff_ccitt", "tiff_deflate"),
    *("tiff_lzw", "tiff_raw_16", "tiff_sgilog", "tiff_thunderscan", "webp", "zstd"),
)


@pytest.mark.parametrize("mode", PILLOW_MODES)
def test_what_pillow_writes_is_read_right_or_refused(mode: str) -> None:
    rgb = Image.fromarray(scene(H, W))
    image = {
        "I;16": lambda: Image.fromarray(scene(H, W)[..., 0].astype(np.uint16) * 257),
        "I;16B": lambda: Image.fromarray((scene(H, W)[..., 0].astype(np.uint16) * 257).astype(">u2")),
        "LAB": lambda: in_lab(scene(H, W)),
        "P": lambda: rgb.quantize(64),
        "PA": lambda: rgb.quantize(64).convert("PA"),
    }.get(mode, lambda: rgb.convert(mode))()
    if mode in ("LA", "PA", "RGBA"):
        image.putalpha(Image.fromarray(scene(H, W)[..., 1]))
    shown = (image.convert("L") if mode in ("1", "L", "LA") else rgb if mode in ("LAB", "YCbCr") else image).convert("RGB")
    if mode.startswith("I"):
        shown = Image.fromarray(scene(H, W)[..., 0]).convert("RGB")
    right = 0
    for compression in PILLOW_COMPRESSIONS:
        out = io.BytesIO()
        try:
            image.save(out, "TIFF", compression=compression)
        except (OSError, ValueError, RuntimeError, KeyError):
            continue
        picture = picture_or_reason(out.getvalue())
        if isinstance(picture, str):
            continue
        right += 1
        is_lossy = compression in ("jpeg", "webp") or mode in ("LAB", "YCbCr")
        assert psnr_db(picture.rgb, np.asarray(shown)) > (30 if is_lossy else 50), compression
        assert picture.has_alpha == (mode in ("LA", "PA", "RGBA")), compression
    assert right


def in_lab(rgb: np.ndarray) -> Image.Image:
    """CIELab of D50, as ICC profiles have it."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(Image.fromarray(rgb), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
