"""Small valid images of each format, for tests to decode and to damage."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.images.errors import ImageError
from tests.support.exact_writers import bmp_file, gif_file, gif_image
from tests.support.heifs import heif_file, picture

LIMIT = 40_000_000
H, W = 24, 36
FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])


def scene(h: int = H, w: int = W) -> np.ndarray:
    """Return a smooth colour image without symmetry, so that a rotation or a flip is visible."""
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    return np.stack([200 * x + 20, 220 * y + 10, 120 * x * y + 60 * y + 40], -1).round().astype(np.uint8)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode_as(image: Image.Image, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int, colour: int, lines: list[bytes], *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def decode_error_class(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(ImageError) as raised:
        decode_image(data, max_pixels)
    assert str(raised.value)
    return raised.value.error_class


def decode_or_error(data: bytes) -> DecodedImage | ImageError:
    """Decode an image, or return its ImageError. Any other exception fails the test."""
    try:
        return decode_image(data, 1_000_000)
    except ImageError as e:
        return e


def is_valid_outcome(outcome: DecodedImage | ImageError) -> bool:
    """Return whether an image is RGB, or its error has a class and says what is wrong and what to do."""
    if isinstance(outcome, ImageError):
        return bool(outcome.error_class) and ". " in str(outcome)
    return outcome.rgb.dtype == np.uint8 and outcome.rgb.ndim == 3 and outcome.rgb.shape[2] == 3


def visible_pixels(decoded: DecodedImage) -> np.ndarray:
    """Return (H,W) bool: the visible pixels. The colours of the hidden pixels are interpolated from the visible ones."""
    return np.ones(decoded.rgb.shape[:2], bool) if decoded.alpha is None else decoded.alpha > 0


def seeds() -> dict[str, bytes]:
    image, exif = Image.fromarray(scene()), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "what it shows"
    frames = [Image.fromarray(noise(9, 7, 3) + np.uint8(40 * n)) for n in range(3)]
    return {
        "JPEG": encode_as(image, "JPEG", exif=exif),
        "progressive JPEG": encode_as(image, "JPEG", progressive=True, quality=60),
        "CMYK JPEG": encode_as(image.convert("CMYK"), "JPEG"),
        "MPO": encode_as(image, "MPO", save_all=True, append_images=frames[:1]),
        "PNG": encode_as(image, "PNG", exif=exif),
        "palette PNG": encode_as(image.quantize(16), "PNG", transparency=3),
        "APNG": encode_as(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "16-bit PNG": encode_as(Image.fromarray(noise(8, 8).astype(np.uint16) * 256), "PNG"),
        "GIF": encode_as(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "WebP": encode_as(image, "WEBP", exif=exif),
        "animated WebP": encode_as(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "TIFF": encode_as(image, "TIFF"),
        "deflated TIFF": encode_as(image, "TIFF", compression="tiff_adobe_deflate"),
        "LZW TIFF": encode_as(image, "TIFF", compression="tiff_lzw"),
        "JPEG TIFF": encode_as(image, "TIFF", compression="jpeg"),
        "16-bit TIFF": encode_as(Image.fromarray(noise(8, 8).astype(np.uint16) * 256), "TIFF"),
        "1-bit TIFF": encode_as(image.convert("1"), "TIFF", compression="group4"),
        "pages of TIFF": encode_as(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "BMP": encode_as(image, "BMP"),
        "palette BMP": encode_as(image.quantize(16), "BMP"),
        "PPM": encode_as(image, "PPM"),
        "1-bit PBM": encode_as(image.convert("1"), "PPM"),
        "16-bit RGB PNG": png(
            8, 8, 16, 2, [noise(48).tobytes()] * 8, chunk(b"tRNS", bytes(6)), chunk(b"cICP", b"\x09\x10\0\1")
        ),
        "plain PPM": b"P3 # by hand\n6 6 255\n" + b" ".join(b"%d" % value for value in noise(108)),
        "16-bit PGM": b"P5\n8 8\n65535\n" + b"\7" * 128,
        "PAM": b"P7\nWIDTH 8\nHEIGHT 6\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + noise(192).tobytes(),
        "RLE BMP": bmp_file([b"\4\1\0\3abc\0\0\2\2\1\2\2\0\0\0\1"], (9, 5), 8, compression=1, palette=noise(9, 3)),
        "bit fields of BMP": bmp_file(
            [noise(36).tobytes()] * 5, (9, 5), 32, header=124, compression=3, masks=(7, 56, 448, 3584)
        ),
        "HEIC": heif_file(picture(), exif=exif.tobytes()),
        "JPEG XL": imagecodecs.jpegxl_encode(scene(), lossless=True, usecontainer=True),
        "lossy JPEG XL": imagecodecs.jpegxl_encode(scene(), level=90),
        "offset GIF": gif_file((9, 9), noise(16, 3), gif_image(noise(5, 6) % 16, (2, 1), None, 3, True)),
    }


SEEDS = seeds()
