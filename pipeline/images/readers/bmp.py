"""BMP of every kind: Windows and OS/2 headers, palettes, bit fields, RLE, and pictures in PNG or JPEG inside.

Pillow refuses most bit fields, shows rows that RLE leaves out as the first colour, and knows no colour space. Written by the
headers in Microsoft's documentation (BITMAPINFOHEADER, BITMAPV4HEADER, BITMAPV5HEADER) and tested with every kind of the BMP
suite (https://entropymine.com/jason/bmpsuite/), as far as documents define them.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.images.colour import ColourSpace
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

CORE, INFO, OS2, V4, V5 = 12, 40, 64, 108, 124
PLAIN, RLE8, RLE4, BIT_FIELDS, JPEG, PNG, ALPHA_BIT_FIELDS = 0, 1, 2, 3, 4, 5, 6
OS2_HUFFMAN, OS2_RLE24 = 3, 4
DEFAULT_MASKS = {16: (0x7C00, 0x03E0, 0x001F, 0), 24: (0xFF0000, 0xFF00, 0xFF, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
METRES_PER_INCH = 0.0254
CALIBRATED, LINKED, EMBEDDED = 0, int.from_bytes(b"LINK", "big"), int.from_bytes(b"MBED", "big")


@dataclass(frozen=True)
class Header:
    """The headers of a file."""

    size: int
    """Of the second header, which says the variant."""
    width: int
    height: int
    bottom_up: bool
    bits: int
    compression: int
    colours: int
    """In the palette; 0 for as many as the bits allow."""
    masks: tuple[int, int, int, int]
    """Of red, green, blue and alpha in a pixel of 16, 24 or 32 bits."""
    palette_at: int
    pixels_at: int


def header_of(data: bytes) -> Header:
    """The headers of a file.

    Raises: ImageError.
    """
    pixels_at, size = struct.unpack_from("<II", data, 10)
    if size == CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = colours = 0
    elif INFO <= size <= V5 or 16 <= size < INFO:
        # OS/2 cuts its header off where only zeros would follow.
        fields = data[18 : 14 + min(size, 40)].ljust(36, b"\0")
        width, height, _, bits, compression, _, _, _, colours, _ = struct.unpack("<iiHHIIiiII", fields)
    else:
        raise ImageError("UnsupportedFormat", f"a BMP with a header of {size} bytes is not supported; convert it")
    if width <= 0 or not height:
        raise ImageError("BrokenImage", f"a BMP of {width}×{height} pixels")
    masks, behind = DEFAULT_MASKS.get(bits, (0, 0, 0, 0)), 14 + size
    if compression in (BIT_FIELDS, ALPHA_BIT_FIELDS) and size != OS2:
        # Windows 3 keeps the masks behind its header; newer headers have places for them.
        count = 4 if size >= 56 or compression == ALPHA_BIT_FIELDS else 3
        stored = (*struct.unpack_from(f"<{count}I", data, 54), 0)[:4]
        masks = stored if any(stored[:3]) else masks
        behind += 4 * count if size == INFO else 0
    elif size >= 56 and compression == PLAIN and bits == 32:
        masks = (*masks[:3], 0)
    return Header(size, width, abs(height), height > 0, bits, compression, colours, masks, behind, pixels_at)


def read_bmp_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the headers. Raises: ImageError."""
    header = header_of(stream.getvalue())
    return header.width, header.height


def read_bmp(stream: io.BytesIO) -> StoredImage:
    """The picture of a file.

    Raises: ImageError.
    """
    data = stream.getvalue()
    header = header_of(data)
    profile, space, ignored = colours_of(data, header)
    os2 = header.size == OS2 or 16 <= header.size < INFO
    if header.compression in (JPEG, PNG) and not os2:
        raise ImageError(
            "UnsupportedFormat", f"a BMP that holds a {'JPEG' if header.compression == JPEG else 'PNG'}; convert it"
        )
    if header.compression == OS2_HUFFMAN and os2:
        raise ImageError("UnsupportedFormat", "a BMP with Huffman compression (OS/2) is not supported; convert it")
    kind = (header.compression, header.bits)
    gray, bit_depth, palette = False, 8, None
    if header.bits <= 8:
        palette = palette_of(data, header)
        gray = bool((palette == palette[:, :1]).all())
    if kind in ((RLE8, 8), (RLE4, 4)) or (os2 and kind == (OS2_RLE24, 24)):
        samples, drawn = unpacked_runs(data, header)
        pixels = samples if palette is None else palette[samples]
        if not drawn.all():
            pixels = np.dstack([pixels, np.where(drawn, np.uint8(255), np.uint8(0))])
            pixels[~drawn] = 0
    elif palette is not None and header.compression == PLAIN and header.bits in (1, 2, 4, 8):
        black_and_white = header.bits == 1 and gray and sorted(palette[:2, 0]) == [0, 255]
        bit_depth = 1 if black_and_white else 8
        pixels = from_rows(data, header, palette[:, 0] if gray else palette)
    elif header.compression in (PLAIN, BIT_FIELDS, ALPHA_BIT_FIELDS) and header.bits in DEFAULT_MASKS and not os2:
        pixels = from_rows(data, header, None)
        bit_depth = max(8, *(bin(mask).count("1") for mask in header.masks))
    elif header.compression == PLAIN and header.bits == 24:
        pixels = from_rows(data, header, None)
    else:
        raise ImageError(
            "UnsupportedFormat", f"a BMP of {header.bits} bits with compression {header.compression}; convert it"
        )
    if header.bottom_up:
        pixels = pixels[::-1]
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[..., 3].any():
        # Programs that know no alpha leave zeros there. Nobody stores a picture that cannot be seen.
        pixels = pixels[..., :3]
    has_alpha = pixels.ndim == 3 and pixels.shape[2] == 4
    opened = StoredImage(
        pixels, "BMP", "L" if gray else "RGB", has_alpha, bit_depth, profile=profile, space=space, ignored=ignored
    )
    if header.size >= INFO:
        right, down = struct.unpack_from("<ii", data, 38)
        opened.dpi = (right * METRES_PER_INCH, down * METRES_PER_INCH) if right > 0 and down > 0 else None
    return opened


def palette_of(data: bytes, header: Header) -> np.ndarray:
    """(256,3) uint8; colours that the palette lacks are black, as browsers show them."""
    entry = 3 if header.size == CORE else 4
    most = 1 << header.bits
    count = min(header.colours or most, most)
    if header.pixels_at > header.palette_at:
        count = min(count, (header.pixels_at - header.palette_at) // entry)
    colours = np.frombuffer(data, np.uint8, entry * count, header.palette_at).reshape(count, entry)
    palette = np.zeros((256, 3), np.uint8)
    palette[:count] = colours[:, 2::-1]
    return palette


def from_rows(data: bytes, header: Header, palette: np.ndarray | None) -> np.ndarray:
    """(H,W) or (H,W,C) uint8 of rows that are not compressed, in their order; by bit fields where there is no palette.

    Raises: ValueError where the rows are cut.
    """
    stride = (header.width * header.bits + 31) // 32 * 4
    at = header.pixels_at or header.palette_at
    # Some writers leave out what fills the last row up to four bytes.
    room = stride * (header.height - 1) + (header.width * header.bits + 7) // 8
    stored = np.frombuffer(data[at : at + stride * header.height].ljust(stride * header.height, b"\0"), np.uint8)
    if len(data) - at < room:
        raise ValueError(f"a BMP that is cut: {len(data) - at} of {room} bytes of pixels")
    stored = stored.reshape(header.height, stride)
    alpha = header.masks[3] != 0
    channels = palette.shape[1:] if palette is not None else (4 if alpha else 3,)
    pixels = np.empty((header.height, header.width, *channels), np.uint8)
    for rows in row_strips(header.width, header.height):
        part = stored[rows]
        if palette is not None:
            pixels[rows] = palette[indices(part, header.bits)[:, : header.width]]
        elif header.masks == DEFAULT_MASKS[header.bits] and header.bits != 16:
            used = part[:, : header.width * header.bits // 8].reshape(len(part), header.width, -1)
            pixels[rows] = used[..., 2::-1]
        else:
            words = whole_pixels(part, header)
            for channel, mask in enumerate(header.masks[: channels[0]]):
                pixels[rows][..., channel] = bit_field(words, mask)
    return pixels


def whole_pixels(rows: np.ndarray, header: Header) -> np.ndarray:
    """(h,W) uint32: the pixels of rows (h,stride) of bytes."""
    size = header.bits // 8
    used = np.ascontiguousarray(rows[:, : header.width * size])
    if size == 3:
        parts = used.reshape(len(rows), header.width, 3).astype(np.uint32)
        return parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    return used.view(f"<u{size}").astype(np.uint32)


def indices(rows: np.ndarray, bits: int) -> np.ndarray:
    """(h,stride) bytes to (h,stride·8/bits) samples of 1, 2, 4 or 8 bits."""
    if bits == 8:
        return rows
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return ((rows[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(rows), -1)


def bit_field(words: np.ndarray, mask: int) -> np.ndarray:
    """The samples under a mask as uint8, rounded; 0 where the mask is empty.

    Raises: ImageError for a mask with a hole.
    """
    if not mask:
        return np.zeros(words.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    if most & (most + 1):
        raise ImageError("BrokenImage", f"a BMP with the bit field {mask:#010x}, which has a hole")
    samples = (words & np.uint32(mask)) >> np.uint32(shift)
    if most > 65535:
        extra = most.bit_length() - 16
        samples, most = samples >> np.uint32(extra), 65535
    return rescale(samples, most, 255).astype(np.uint8)


def unpacked_runs(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Unpack RLE to samples (H,W) or (H,W,3) uint8, and whether each was drawn (H,W), in the order of the file.

    Raises: ValueError where the file ends before the picture does.
    """
    width, height, bits = header.width, header.height, header.bits
    size = 3 if bits == 24 else 1
    samples = np.zeros((height, width, size), np.uint8)
    drawn = np.zeros((height, width), bool)
    x, y, at = 0, 0, header.pixels_at
    while y < height:
        if at + 2 > len(data):
            raise ValueError(f"a BMP that is cut in row {y} of {height}")
        count, value = data[at], data[at + 1]
        if count:
            run = data[at + 1 : at + 1 + size]
            at += 1 + size
            if len(run) < size:
                raise ValueError(f"a BMP that is cut in row {y} of {height}")
            # Of 4 bits two samples take turns.
            values = np.frombuffer(run, np.uint8)[::-1]
            values = np.resize(indices(values[None], 4), (count, 1)) if bits == 4 else values
        elif value == 0:
            x, y, at = 0, y + 1, at + 2
            continue
        elif value == 1:
            break
        elif value == 2:
            if at + 4 > len(data):
                raise ValueError(f"a BMP that is cut in row {y} of {height}")
            x, y, at = x + data[at + 2], y + data[at + 3], at + 4
            continue
        else:
            count = value
            used = (count * bits + 7) // 8
            literal = np.frombuffer(data, np.uint8, used, at + 2)
            at += 2 + used + used % 2
            values = literal.reshape(-1, 3)[:, ::-1] if bits == 24 else indices(literal[None], bits)[0, :count, None]
        room = max(0, min(count, width - x))
        samples[y, x : x + room] = values[:room] if values.ndim == 2 else values
        drawn[y, x : x + room] = True
        x += count
    return samples if size == 3 else samples[..., 0], drawn


def colours_of(data: bytes, header: Header) -> tuple[bytes | None, ColourSpace | None, str]:
    """(ICC profile, colour space, what is ignored) by a header of version 4 or 5."""
    if header.size < V4:
        return None, None, ""
    (kind,) = struct.unpack_from("<I", data, 70)
    if kind == EMBEDDED and header.size >= V5:
        at, size = struct.unpack_from("<II", data, 14 + 112)
        return data[14 + at : 14 + at + size] or b"\0", None, ""
    if kind == LINKED:
        return None, None, "a profile in another file"
    if kind != CALIBRATED:
        return None, None, ""
    # XYZ of red, green and blue with 30 fractional bits, gammas with 16.
    ends = np.array(struct.unpack_from("<9I", data, 74)).reshape(3, 3) / 2**30
    gammas = np.array(struct.unpack_from("<3I", data, 110)) / 2**16
    if not ends.any() or not gammas.any():
        return None, None, ""
    if (ends.sum(1) <= 0).any() or (gammas < 0.1).any() or (gammas > 10).any():
        return None, None, "colours by invalid numbers"
    white = ends.sum(0)
    points = [value for x, y, z in (*ends, white) for value in (x / (x + y + z), y / (x + y + z))]
    gamma = float(gammas.mean())
    ignored = "" if np.ptp(gammas) < 0.01 else "that gammas of red, green and blue differ"
    return None, ColourSpace(tuple(points), gamma, f"gamma {gamma:.3g}"), ignored
