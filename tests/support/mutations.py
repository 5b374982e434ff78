"""Image files damaged by accidents or by attackers, made from real photos."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
from PIL import Image

from tests.support.camera_raw import dng_file
from tests.support.heifs import heif_file, picture

FORMATS = {
    "bmp": [{}],
    "gif": [{}, {"interlace": False}],
    "jpg": [{"quality": 80}, {"quality": 60, "progressive": True}, {"quality": 70, "restart_marker_blocks": 2}],
    "png": [{}, {"optimize": True}],
    "tiff": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}],
    "webp": [{"quality": 70}, {"lossless": True}],
}
HEADER_BYTES = 64
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def originals(crops: list[np.ndarray], side: int) -> list[tuple[str, bytes]]:
    """Yield (extension, file) in each format and with each option, in colour and in gray."""
    made = []
    for extension, variants in FORMATS.items():
        for number, options in enumerate(variants):
            for mode in ("RGB", "L"):
                out = io.BytesIO()
                image = Image.fromarray(crops[number][:side, :side]).convert(mode)
                image.save(out, {"jpg": "jpeg"}.get(extension, extension), **options)
                made.append((extension, out.getvalue()))
    pixels = np.ascontiguousarray(crops[0][:side, :side])
    made += [("jxl", imagecodecs.jpegxl_encode(pixels, lossless=is_lossless)) for is_lossless in (True, False)]
    made += [("heic", heif_file(picture(), exif=Image.Exif().tobytes())), ("heic", heif_file(picture("deep")))]
    return [*made, ("dng", dng_file(pixels / 255))]


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Apply one to four changes: flip bits, cut or insert bytes, cut off the end, overwrite numbers in the header."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        kind, offset = generator.randrange(6), generator.randrange(len(changed) or 1)
        if kind == 0:
            for _ in range(generator.randint(1, 8)):
                changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del changed[max(1, offset) :]
        elif kind == 2:
            del changed[offset : offset + generator.randint(1, 64)]
        elif kind == 3:
            changed[offset:offset] = generator.randbytes(generator.randint(1, 64))
        elif kind == 4:
            size, order = generator.choice((1, 2, 4)), generator.choice("<>")
            at = generator.randrange(min(HEADER_BYTES, len(changed)))
            number = struct.pack(f"{order}I", generator.choice(NUMBERS) & 2 ** (8 * size) - 1)
            changed[at : at + size] = number[:size] if order == "<" else number[-size:]
        else:
            source = generator.randrange(len(changed))
            length = generator.randint(1, 32)
            changed[offset : offset + length] = changed[source : source + length]
        if not changed:
            return b""
    return bytes(changed)


def mutations(crops: list[np.ndarray], count: int, side: int = 24) -> Iterator[tuple[str, bytes]]:
    """Yield (name, file); the files are the same each time."""
    generator, intact = random.Random(0), originals(crops, side)
    for number in range(count):
        extension, data = intact[number % len(intact)]
        yield f"{number % 50}/{number}.{extension}", mutate(data, generator)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield (name, file) of small files that need much memory."""
    begin, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    zeros = zlib.compress(bytes(50_000_000), 9)
    for width, height in ((30_000, 30_000), (2**31 - 1, 1), (1, 2**31 - 1), (65_000, 65_000)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        yield f"bombs/{width}x{height}.png", begin + header + chunk(b"IDAT", zeros) + end
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"Comment\0\0" + zeros)
    profile = chunk(b"iCCP", b"icc\0\0" + zeros)
    for name, extra in (("text", text), ("many_texts", text * 50), ("profile", profile), ("rows", chunk(b"IDAT", zeros))):
        yield f"bombs/{name}.png", begin + small + extra + end
    flat = Image.new("L", (7_000, 7_000))
    for extension, options in (
        ("webp", {"lossless": True, "method": 0}),
        ("gif", {}),
        ("tiff", {"compression": "tiff_lzw"}),
    ):
        out = io.BytesIO()
        flat.save(out, extension, **options)
        yield f"bombs/flat.{extension}", out.getvalue()
    yield "bombs/flat.jxl", imagecodecs.jpegxl_encode(np.zeros((7_000, 7_000), np.uint8), lossless=True, effort=1)
    out = io.BytesIO()
    frames = [Image.new("L", (32, 32), number % 256) for number in range(500)]
    frames[0].save(out, "gif", save_all=True, append_images=frames[1:])
    yield "bombs/frames.gif", out.getvalue()
