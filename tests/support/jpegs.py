"""JPEG files with all combinations of the writers' options, and the ways in which files get damaged."""

import random
from collections.abc import Callable, Iterator
from importlib.resources import files

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image

from tests.support.sample_images import encode_as

EOI = b"\xff\xd9"


def crop_photo(width: int, height: int, name: str = "coffee", left: int = 150, top: int = 80) -> np.ndarray:
    """Return a crop (H,W,3) uint8 of a photo of scikit-image."""
    image = Image.open(str(files("skimage.data").joinpath(f"{name}.png"))).convert("RGB")
    return np.asarray(image.crop((left, top, left + width, top + height)))


def iterate_variants(rgb: np.ndarray) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Yield (name, file, truth) for each combination of the writers' options; truth is (H,W,3) uint8 before compression."""
    image = Image.fromarray(rgb)
    gray = np.asarray(image.convert("L"))
    gray3 = np.repeat(gray[..., None], 3, -1)
    for quality in (75, 95):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for kind in (
                {},
                {"progressive": True},
                {"optimize": True},
                {"restart_marker_blocks": 3},
                {"restart_marker_rows": 1},
            ):
                name = f"Pillow {quality} {subsampling} {' '.join(kind)}"
                yield name, encode_as(image, "JPEG", quality=quality, subsampling=subsampling, **kind), rgb
        for kind in ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}):
            yield (
                f"Pillow gray {quality} {' '.join(kind)}",
                encode_as(image.convert("L"), "JPEG", quality=quality, **kind),
                gray3,
            )
            cmyk = image.convert("CMYK")
            yield (
                f"Pillow CMYK {quality} {' '.join(kind)}",
                encode_as(cmyk, "JPEG", quality=quality, **kind),
                np.asarray(cmyk.convert("RGB")),
            )
            yield (
                f"Pillow RGB {quality} {' '.join(kind)}",
                encode_as(image, "JPEG", quality=quality, keep_rgb=True, **kind),
                rgb,
            )
        for subsampling in ("444", "422", "420", "440", "411"):
            yield f"simplejpeg {quality} {subsampling}", simplejpeg.encode_jpeg(rgb, quality, "RGB", subsampling), rgb
        yield f"simplejpeg gray {quality}", simplejpeg.encode_jpeg(gray[..., None].copy(), quality, "GRAY", "Gray"), gray3
        for subsampling in ("444", "422", "420", "440", "411"):
            for optimize in (False, True):
                data = imagecodecs.jpeg8_encode(rgb, quality, subsampling=subsampling, optimize=optimize)
                yield f"imagecodecs {quality} {subsampling} {optimize=}", data, rgb
        for colours in ("CMYK", "YCCK"):
            data = imagecodecs.jpeg8_encode(255 - np.asarray(cmyk), quality, colorspace="CMYK", outcolorspace=colours)
            yield f"imagecodecs {colours} {quality}", data, np.asarray(cmyk.convert("RGB"))
        deep = (rgb.astype(np.uint32) * 4095 // 255).astype(np.uint16)
        yield f"imagecodecs 12 bits {quality}", imagecodecs.jpeg8_encode(deep, quality, bitspersample=12), rgb
        yield (
            f"imagecodecs 12 bits gray {quality}",
            imagecodecs.jpeg8_encode(deep[..., 1].copy(), quality, bitspersample=12),
            (np.repeat(rgb[..., 1:2], 3, -1)),
        )
    for predictor in range(1, 8):
        data = imagecodecs.jpeg8_encode(rgb, lossless=True, predictor=predictor)
        yield f"imagecodecs lossless, predictor {predictor}", data, rgb
    deep = rgb.astype(np.uint16) * 257
    yield "imagecodecs lossless 16 bits", imagecodecs.jpeg8_encode(deep, lossless=True, bitspersample=16), rgb
    yield "imagecodecs lossless gray", imagecodecs.jpeg8_encode(gray, lossless=True), gray3


def find_image_data(data: bytes) -> tuple[int, int]:
    """Return the offsets of the data of the first scan and of the end marker."""
    scan = data.index(b"\xff\xda")
    return scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big"), data.rindex(EOI)


def zero_out(data: bytes, at: int, size: int) -> bytes:
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def overwrite_with_noise(data: bytes, at: int, size: int) -> bytes:
    return data[:at] + random.Random(at).randbytes(min(size, len(data) - at)) + data[at + size :]


DAMAGE: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "zero sector of 512": lambda d, at, o: zero_out(d, at, 512)[:-2] + EOI,
    "zero sector of 4096": lambda d, at, o: zero_out(d, at, 4096)[:-2] + EOI,
    "erased sector of 512": lambda d, at, o: (d[:at] + b"\xff" * min(512, len(d) - at) + d[at + 512 :])[:-2] + EOI,
    "noise of 512": lambda d, at, o: overwrite_with_noise(d, at, 512)[:-2] + EOI,
    "zero tail": lambda d, at, o: zero_out(d, at, len(d)),
    "zero tail with an end marker": lambda d, at, o: zero_out(d, at, len(d))[:-2] + EOI,
    "cut": lambda d, at, o: d[:at],
    "cut with an end marker": lambda d, at, o: d[:at] + EOI,
    "lost 1": lambda d, at, o: d[:at] + d[at + 1 :],
    "lost 100": lambda d, at, o: d[:at] + d[at + 100 :],
    "lost 3000": lambda d, at, o: d[:at] + d[at + 3000 :],
    "100 too many": lambda d, at, o: d[:at] + d[at : at + 100] + d[at:],
    "continued by another file": lambda d, at, o: d[:at] + o[min(at, len(o) - 1) :],
    "overwritten by another file": lambda d, at, o: d[:at] + o + d[at + len(o) :],
    "sectors exchanged": lambda d, at, o: d[:at] + d[at + 512 : at + 1024] + d[at : at + 512] + d[at + 1024 :],
}
"""Functions of (file, offset, neighbouring file) that damage a file like cards, disks, transfers and recovery tools do."""


def flip_bit(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def is_visibly_different(rgb: np.ndarray, truth: np.ndarray) -> bool:
    """Return whether two images (H,W,3) differ visibly: more than 1 % of the pixels by more than 16 levels."""
    if rgb.shape != truth.shape:
        return True
    return bool((np.abs(rgb.astype(np.int16) - truth).max(2) > 16).mean() > 0.01)
