"""TIFF files of all kinds in TIFF 6.0, including kinds that Pillow and tifffile do not write."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile

from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.errors import ImageError

SHORT, LONG, LONG8, BYTE = 3, 4, 16, 1


def pack_samples(samples: np.ndarray, bits: int, order: str) -> bytes:
    """Pack (rows, columns, samples) integers, highest bit first; each row is a whole number of bytes."""
    rows = samples.reshape(len(samples), -1).astype(np.uint64)
    if bits in (8, 16, 32):
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    if bits == 24:
        parts = rows.astype(f"{order}u4").view(np.uint8).reshape(*rows.shape, 4)
        return parts[..., slice(3) if order == "<" else slice(1, 4)].tobytes()
    ones = (rows[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64) & np.uint64(1)).astype(np.uint8)
    return np.packbits(ones.reshape(len(rows), -1), axis=1).tobytes()


def encode_tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int | None,
    *,
    planar: bool = False,
    order: str = "<",
    big: bool = False,
    rows: int | None = None,
    tile: int | None = None,
    fill_order: int = 1,
    deflate: bool = False,
    extra: tuple[int, ...] | None = None,
    tags: dict[int, tuple[int, tuple[int, ...]]] | None = None,
) -> bytes:
    """Return a TIFF of (H,W,S) integers.

    Args:
        rows: the rows of a strip.
        tile: the side of a tile.
        tags: additional or replaced tags: (type, values) by number.
    """
    height, width, count = samples.shape
    planes = [samples[..., n : n + 1] for n in range(count)] if planar else [samples]
    segments = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)), "edge")
            parts = [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
        else:
            step = rows or height
            parts = [plane[y : y + step] for y in range(0, height, step)]
        segments += [pack_samples(part, bits, order) for part in parts]
    if deflate:
        segments = [zlib.compress(segment) for segment in segments]
    if fill_order == 2:
        turned = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))
        segments = [segment.translate(turned) for segment in segments]
    entries: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (LONG, (width,)),
        257: (LONG, (height,)),
        258: (SHORT, (bits,) * count),
        259: (SHORT, (8 if deflate else 1,)),
        266: (SHORT, (fill_order,)),
        277: (SHORT, (count,)),
        284: (SHORT, (2 if planar else 1,)),
    }
    if photometric is not None:
        entries[262] = SHORT, (photometric,)
    if extra is not None:
        entries[338] = SHORT, extra
    if tile:
        entries |= {322: (LONG, (tile,)), 323: (LONG, (tile,))}
    else:
        entries[278] = LONG, (rows or height,)
    return build_tiff(entries | (tags or {}), segments, order, big)


def build_tiff(
    entries: dict[int, tuple[int, tuple[int, ...]]], segments: list[bytes], order: str = "<", big: bool = False
) -> bytes:
    """Return a TIFF of one directory whose strips or tiles are given as stored bytes."""
    head = struct.pack(f"{order}2sHHHQ", b"", 43, 8, 0, 0) if big else struct.pack(f"{order}2sHI", b"", 42, 0)
    body, offsets = bytearray((b"II" if order == "<" else b"MM") + head[2:]), []
    for segment in segments:
        offsets.append(len(body))
        body += segment + b"\0" * (len(segment) % 2)
    tiled = 322 in entries
    long = LONG8 if big else LONG
    entries = {
        324 if tiled else 273: (long, tuple(offsets)),
        325 if tiled else 279: (long, tuple(map(len, segments))),
    } | entries
    letters = {BYTE: "B", 2: "B", SHORT: "H", LONG: "I", 5: "I", 7: "B", 11: "f", LONG8: "Q"}
    inside, offset = (8, "Q") if big else (4, "I")
    directory = bytearray(struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)))
    for tag, (kind, values) in sorted(entries.items()):
        value = struct.pack(f"{order}{len(values)}{letters[kind]}", *values)
        count = len(values) // 2 if kind == 5 else len(values)
        if len(value) <= inside:
            place = value.ljust(inside, b"\0")
        else:
            place = struct.pack(f"{order}{offset}", len(body))
            body += value + b"\0" * (len(value) % 2)
        directory += struct.pack(f"{order}HH{offset}", tag, kind, count) + place
    struct.pack_into(f"{order}{offset}", body, 8 if big else 4, len(body))
    return bytes(body + directory + bytes(inside))


def decode_error(data: bytes) -> tuple[str, str]:
    """Return the error class and the message of an image that cannot be decoded."""
    with pytest.raises(ImageError) as raised:
        decode_image(data)
    return raised.value.error_class, str(raised.value)


def build_pages(*pages: bytes, order: str = "<") -> bytes:
    """Join TIFFs of one page each into one file, with corrected offsets."""
    joined = bytearray(pages[0][:4] + bytes(4))
    link = 4
    for page in pages:
        base = len(joined) - 8
        (start,) = struct.unpack_from("<I", page, 4)
        body = bytearray(page)
        (count,) = struct.unpack_from("<H", body, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from("<HHI", body, at)
            size = {1: 1, 3: 2, 4: 4, 5: 8}[kind] * values
            (value,) = struct.unpack_from("<I", body, at + 8)
            if tag in (273, 324):
                offset_positions = [value + 4 * n for n in range(values)] if size > 4 else [at + 8]
                for position in offset_positions:
                    struct.pack_into("<I", body, position, struct.unpack_from("<I", body, position)[0] + base)
            if size > 4:
                struct.pack_into("<I", body, at + 8, value + base)
        struct.pack_into("<I", joined, link, start + base)
        link = base + start + 2 + 12 * count
        joined += body[8:]
    return bytes(joined)


def encode_with_tifffile(samples: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, metadata=None, **options)
    return out.getvalue()
