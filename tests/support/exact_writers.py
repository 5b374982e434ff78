"""Writers of image files that store given samples exactly, in variants that Pillow and imagecodecs do not write."""

import itertools
import struct
import zlib

import numpy as np

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""(left, top, step right, step down) of each Adam7 pass."""


def pack_samples(samples: np.ndarray, bits: int) -> list[bytes]:
    """Pack rows of (h,n) samples of 1 to 16 bits into bytes, the first sample in the highest bits."""
    if bits >= 8:
        return [row.astype(f">u{bits // 8}").tobytes() for row in samples]
    places = (samples[..., None].astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return [row.tobytes() for row in np.packbits(places.reshape(len(samples), -1), axis=1)]


def filter_rows(rows: list[bytes], step: int, kinds: itertools.cycle) -> bytes:
    """Filter the rows of a PNG, each with the next filter type."""
    out, above = b"", bytes(len(rows[0])) if rows else b""
    for row in rows:
        kind = next(kinds)
        left, corner = bytes(step) + row[:-step], bytes(step) + above[:-step]
        line = bytearray()
        for x, a, b, c in zip(row, left[: len(row)], above, corner[: len(row)], strict=True):
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line.append(x - (0, a, b, (a + b) // 2, paeth)[kind] & 255)
        out += bytes([kind]) + bytes(line)
        above = row
    return out


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_file(
    samples: np.ndarray, bits: int, colour: int, *before: bytes, interlaced: bool = False, idat_bytes: int = 1 << 20
) -> bytes:
    """Return (H,W,C) samples as a PNG with the chunks `before` the pixels; the rows use each filter in turn."""
    height, width, channels = samples.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    kinds = itertools.cycle(range(5))
    rows = b""
    for left, top, right, down in passes:
        part = samples[top::down, left::right]
        if part.size:
            rows += filter_rows(pack_samples(part.reshape(len(part), -1), bits), max(1, bits * channels // 8), kinds)
    body = zlib.compress(rows)
    parts = [chunk(b"IDAT", body[at : at + idat_bytes]) for at in range(0, len(body), idat_bytes)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *before, *parts, chunk(b"IEND", b"")))


def lzw(indices: np.ndarray, bits: int) -> bytes:
    """Encode samples as GIF's LZW without a dictionary: a "clear" code comes before the codes would grow."""
    clear, width = 1 << bits, bits + 1
    codes, run = [], clear - 2
    flat = indices.ravel().tolist()
    for at in range(0, len(flat), run):
        codes += [clear, *flat[at : at + run]]
    number = sum(code << width * n for n, code in enumerate([*codes, clear + 1]))
    body = number.to_bytes((width * (len(codes) + 1) + 7) // 8, "little")
    blocks = b"".join(bytes([len(part)]) + part for part in (body[at : at + 255] for at in range(0, len(body), 255)))
    return bytes([bits]) + blocks + b"\0"


def colour_table(palette: np.ndarray) -> tuple[int, bytes]:
    """Return (size as in GIF's flags, table padded with black)."""
    size = max(1, (len(palette) - 1).bit_length())
    return size - 1, palette.astype(np.uint8).tobytes().ljust(3 << size, b"\0")


def gif_image(
    indices: np.ndarray, place: tuple[int, int], palette: np.ndarray | None, transparent: int | None, interlaced: bool
) -> bytes:
    """Return one image block of a GIF, with a local colour table if there is a palette."""
    height, width = indices.shape
    size, table = colour_table(palette) if palette is not None else (0, b"")
    flags = (0x80 | size if table else 0) | (0x40 if interlaced else 0)
    order = np.r_[0:height:8, 4:height:8, 2:height:4, 1:height:2] if interlaced else np.arange(height)
    control = b"" if transparent is None else b"!\xf9\4" + bytes([1, 0, 0, transparent]) + b"\0"
    head = b"," + struct.pack("<4HB", *place, width, height, flags)
    return control + head + table + lzw(indices[order], max(2, int(indices.max()).bit_length()))


def gif_file(screen: tuple[int, int], palette: np.ndarray | None, *images: bytes, background: int = 0) -> bytes:
    """Return a GIF of image blocks, with a global colour table if there is a palette."""
    size, table = colour_table(palette) if palette is not None else (0, b"")
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | size if table else 0, background, 0)
    return b"".join((head, table, *images, b";"))


def bmp_file(
    rows: list[bytes],
    size: tuple[int, int],
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] = (),
    top_down: bool = False,
    tail: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """Return a BMP of rows from top to bottom, or of one compressed "row".

    Args:
        masks: of red, green, blue and, in headers of 56 bytes and more, alpha.
        tail: content of the header from its 57th byte on.
        more: bytes after the pixels.
    """
    width, height = size
    padding = b"" if header == 12 else b"\0"
    table = b"" if palette is None else b"".join(bytes(colour[::-1]) + padding for colour in palette.astype(np.uint8))
    lines = [row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows]
    body = rows[0] if compression in (1, 2) else b"".join(lines if top_down else lines[::-1])
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        count, signed = 0 if palette is None else len(palette), -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, compression, len(body), 2835, 2835, count, 0)
        fields = struct.pack(f"<{len(masks)}I", *masks)
        # The masks follow a header of 40 bytes; a longer header contains them.
        info = info + fields if header == 40 else (info + fields.ljust(16, b"\0") + tail).ljust(header, b"\0")[:header]
    at = 14 + len(info) + len(table)
    return struct.pack("<2sIHHI", b"BM", at + len(body), 0, 0, at) + info + table + body + more


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def with_property(avif: bytes, *properties: bytes) -> bytes:
    """Insert properties into the primary item of an AVIF, before those that rotate it."""

    def children(content: bytes) -> list[tuple[bytes, bytes]]:
        parts, at = [], 0
        while at < len(content):
            (length,) = struct.unpack_from(">I", content, at)
            parts.append((content[at + 4 : at + 8], content[at + 8 : at + length]))
            at += length
        return parts

    added = sum(map(len, properties)) + len(properties)
    meta_at = avif.index(b"meta") - 4
    (length,) = struct.unpack_from(">I", avif, meta_at)
    meta = b""
    for kind, content in children(avif[meta_at + 12 : meta_at + length]):
        if kind == b"iprp":
            (_, known), (_, links) = children(content)[:2]
            first = len(children(known)) + 1
            links = bytearray(links)
            assert links[:8] == bytes(4) + links[4:8]
            assert links[8:10] == b"\0\1"
            links[10] += len(properties)
            places = bytes(0x80 | first + n for n in range(len(properties)))
            # Rotations must come last.
            turns = [n for n, (name, _) in enumerate(children(known), 1) if name in (b"irot", b"imir")]
            entries = links[11 : 11 + links[10] - len(properties)]
            at = 11 + next((n for n, entry in enumerate(entries) if entry & 0x7F in turns), len(entries))
            links = bytes(links[:at]) + places + bytes(links[at:])
            content = box(b"ipco", known + b"".join(properties)) + box(b"ipma", links)
        elif kind == b"iloc":
            content = shift_offsets(content, added)
        meta += box(kind, content)
    return avif[:meta_at] + box(b"meta", bytes(4) + meta) + avif[meta_at + length :]


def shift_offsets(iloc: bytes, by: int) -> bytes:
    """Shift all offsets of an item location box. Offsets have four bytes, and there is no base offset."""
    assert iloc[0] == 0
    assert iloc[4:6] == b"\x44\0"
    out, at = bytearray(iloc), 8
    for _ in range(struct.unpack_from(">H", iloc, 6)[0]):
        (extents,) = struct.unpack_from(">H", iloc, at + 4)
        for extent in range(extents):
            place = at + 6 + 8 * extent
            struct.pack_into(">I", out, place, struct.unpack_from(">I", iloc, place)[0] + by)
        at += 6 + 8 * extents
    return bytes(out)


def clap(width: int, height: int, left: int, top: int, size: tuple[int, int]) -> bytes:
    """Return the property that crops an image to a rectangle."""
    right, down = 2 * left + width - size[0], 2 * top + height - size[1]
    return box(b"clap", struct.pack(">8i", width, 1, height, 1, right, 2, down, 2))


def with_jp2_boxes(jp2: bytes, boxes: dict[bytes, bytes]) -> bytes:
    """Replace or add boxes in the header of a JP2."""
    at = jp2.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", jp2, at)
    content, parts = jp2[at + 8 : at + length], {}
    while content:
        (size,) = struct.unpack_from(">I", content)
        parts[content[4:8]], content = content[8:size], content[size:]
    return jp2[:at] + box(b"jp2h", b"".join(box(*item) for item in (parts | boxes).items())) + jp2[at + length :]
