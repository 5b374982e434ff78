"""BMP of every kind: Windows and OS/2 headers, palettes, bit fields and run-length encoding.

Pillow refuses most bit fields, fills pixels that RLE skips with the first colour, and ignores colour spaces. The
headers follow Microsoft's documentation (BITMAPINFOHEADER, BITMAPV4HEADER, BITMAPV5HEADER), and every documented kind
of the BMP suite (https://entropymine.com/jason/bmpsuite/) is tested.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.images.colour import ColourSpace
from imagemill.pipeline.images.errors import ImageError, broken_image, check_dimensions, unsupported_format
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

CORE, INFO, OS2, V4, V5 = 12, 40, 64, 108, 124
"""Sizes in bytes of the second header, which identify its version."""
UNCOMPRESSED, RLE8, RLE4, BIT_FIELDS, JPEG, PNG, ALPHA_BIT_FIELDS = 0, 1, 2, 3, 4, 5, 6
OS2_HUFFMAN, OS2_RLE24 = 3, 4
DEFAULT_MASKS = {16: (0x7C00, 0x03E0, 0x001F, 0), 24: (0xFF0000, 0xFF00, 0xFF, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
METRES_PER_INCH = 0.0254
CALIBRATED, LINKED, EMBEDDED = 0, int.from_bytes(b"LINK", "big"), int.from_bytes(b"MBED", "big")


@dataclass(frozen=True)
class Header:
    """The headers of a file."""

    size: int
    """Bytes of the second header, which identify its version."""
    width: int
    height: int
    is_bottom_up: bool
    bits: int
    """Bits per pixel."""
    compression: int
    palette_colours: int
    """0 for as many as the bits per pixel allow."""
    masks: tuple[int, int, int, int]
    """Bit masks of red, green, blue and alpha in a pixel of 16, 24 or 32 bits."""
    palette_at: int
    pixels_at: int

    @property
    def is_os2(self) -> bool:
        """Whether the second header is one of OS/2, version 2."""
        return self.size == OS2 or 16 <= self.size < INFO


def parse_header(data: bytes) -> Header:
    """Parse the headers of a file.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    pixels_at, size = struct.unpack_from("<II", data, 10)
    if size == CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = palette_colours = 0
    elif INFO <= size <= V5 or 16 <= size < INFO:
        # OS/2 truncates its header if all further fields are zero.
        fields = data[18 : 14 + min(size, 40)].ljust(36, b"\0")
        width, height, _, bits, compression, _, _, _, palette_colours, _ = struct.unpack("<iiHHIIiiII", fields)
    else:
        raise unsupported_format(f"BMP with a header of {size} bytes")
    check_dimensions("BMP", width, abs(height))
    masks, palette_at = DEFAULT_MASKS.get(bits, (0, 0, 0, 0)), 14 + size
    if compression in (BIT_FIELDS, ALPHA_BIT_FIELDS) and size != OS2:
        # Windows 3 stores the masks after its header; newer headers contain them.
        count = 4 if size >= 56 or compression == ALPHA_BIT_FIELDS else 3
        stored_masks = (*struct.unpack_from(f"<{count}I", data, 54), 0)[:4]
        masks = stored_masks if any(stored_masks[:3]) else masks
        palette_at += 4 * count if size == INFO else 0
    elif size >= 56 and compression == UNCOMPRESSED and bits == 32:
        masks = (*masks[:3], 0)
    return Header(
        size=size,
        width=width,
        height=abs(height),
        is_bottom_up=height > 0,
        bits=bits,
        compression=compression,
        palette_colours=palette_colours,
        masks=masks,
        palette_at=palette_at,
        pixels_at=pixels_at,
    )


def read_bmp_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the headers."""
    header = parse_header(stream.getvalue())
    return header.width, header.height


def read_bmp(stream: io.BytesIO) -> StoredImage:
    """Decode the image of a file.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    data = stream.getvalue()
    header = parse_header(data)
    profile, colour_space, ignored_colours = read_colours(data, header)
    pixels, is_gray, bit_depth = decode_pixels(data, header)
    if header.is_bottom_up:
        pixels = pixels[::-1]
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[..., 3].any():
        # Programs without support for alpha leave zeros there. Nobody stores an image that is fully transparent.
        pixels = pixels[..., :3]
    stored = StoredImage(
        pixels=pixels,
        format="BMP",
        mode="L" if is_gray else "RGB",
        has_alpha=pixels.ndim == 3 and pixels.shape[2] == 4,
        bit_depth=bit_depth,
        profile=profile,
        colour_space=colour_space,
        ignored_colours=ignored_colours,
    )
    if header.size >= INFO:
        horizontal, vertical = struct.unpack_from("<ii", data, 38)
        if horizontal > 0 and vertical > 0:
            stored.dpi = (horizontal * METRES_PER_INCH, vertical * METRES_PER_INCH)
    return stored


def decode_pixels(data: bytes, header: Header) -> tuple[np.ndarray, bool, int]:
    """Decode the pixels in the order of the file.

    Returns:
        (H,W) or (H,W,C) uint8, whether they are gray, and the bit depth.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    compression, bits = header.compression, header.bits
    if compression in (JPEG, PNG) and not header.is_os2:
        raise unsupported_format(f"BMP that contains a {'JPEG' if compression == JPEG else 'PNG'}")
    if compression == OS2_HUFFMAN and header.is_os2:
        raise unsupported_format("BMP with OS/2 Huffman compression")
    palette = read_palette(data, header) if bits <= 8 else None
    is_gray = palette is not None and bool((palette == palette[:, :1]).all())
    is_rle = (compression, bits) in ((RLE8, 8), (RLE4, 4)) or (header.is_os2 and (compression, bits) == (OS2_RLE24, 24))
    if is_rle:
        samples, is_drawn = decode_runs(data, header)
        pixels = samples if palette is None else palette[samples]
        if not is_drawn.all():
            pixels = np.dstack([pixels, np.where(is_drawn, np.uint8(255), np.uint8(0))])
            pixels[~is_drawn] = 0
        return pixels, is_gray, 8
    if palette is not None and compression == UNCOMPRESSED and bits in (1, 2, 4, 8):
        is_bilevel = bits == 1 and is_gray and sorted(palette[:2, 0]) == [0, 255]
        return decode_rows(data, header, palette[:, 0] if is_gray else palette), is_gray, 1 if is_bilevel else 8
    if compression in (UNCOMPRESSED, BIT_FIELDS, ALPHA_BIT_FIELDS) and bits in DEFAULT_MASKS and not header.is_os2:
        return decode_rows(data, header, None), False, max(8, *(mask.bit_count() for mask in header.masks))
    if compression == UNCOMPRESSED and bits == 24:
        return decode_rows(data, header, None), False, 8
    raise unsupported_format(f"BMP with {bits} bits per pixel and compression {compression}")


def read_palette(data: bytes, header: Header) -> np.ndarray:
    """Read the palette as (256,3) uint8. Like browsers, show missing colours as black."""
    entry_bytes = 3 if header.size == CORE else 4
    max_colours = 1 << header.bits
    count = min(header.palette_colours or max_colours, max_colours)
    if header.pixels_at > header.palette_at:
        count = min(count, (header.pixels_at - header.palette_at) // entry_bytes)
    colours = np.frombuffer(data, np.uint8, entry_bytes * count, header.palette_at).reshape(count, entry_bytes)
    palette = np.zeros((256, 3), np.uint8)
    palette[:count] = colours[:, 2::-1]
    return palette


def decode_rows(data: bytes, header: Header, palette: np.ndarray | None) -> np.ndarray:
    """Decode uncompressed rows in the order of the file, by palette or else by bit fields.

    Returns:
        (H,W) or (H,W,C) uint8.

    Raises:
        ImageError: with the class BrokenImage, if rows are missing.
    """
    stride = (header.width * header.bits + 31) // 32 * 4
    at = header.pixels_at or header.palette_at
    # Some writers omit the padding of the last row.
    needed = stride * (header.height - 1) + (header.width * header.bits + 7) // 8
    if len(data) - at < needed:
        raise broken_image(f"BMP: the file is truncated: {len(data) - at} of {needed} bytes of pixels")
    stored = np.frombuffer(data[at : at + stride * header.height].ljust(stride * header.height, b"\0"), np.uint8)
    stored = stored.reshape(header.height, stride)
    channels = palette.shape[1:] if palette is not None else (4 if header.masks[3] else 3,)
    pixels = np.empty((header.height, header.width, *channels), np.uint8)
    for rows in row_strips(header.width, header.height):
        strip = stored[rows]
        if palette is not None:
            pixels[rows] = palette[unpack_indices(strip, header.bits)[:, : header.width]]
        elif header.masks == DEFAULT_MASKS[header.bits] and header.bits != 16:
            bgr = strip[:, : header.width * header.bits // 8].reshape(len(strip), header.width, -1)
            pixels[rows] = bgr[..., 2::-1]
        else:
            words = unpack_words(strip, header)
            for channel, mask in enumerate(header.masks[: channels[0]]):
                pixels[rows][..., channel] = extract_bit_field(words, mask)
    return pixels


def unpack_words(rows: np.ndarray, header: Header) -> np.ndarray:
    """Return the pixels of rows (h,stride) uint8 as (h,W) uint32."""
    size = header.bits // 8
    stored = np.ascontiguousarray(rows[:, : header.width * size])
    if size == 3:
        parts = stored.reshape(len(rows), header.width, 3).astype(np.uint32)
        return parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    return stored.view(f"<u{size}").astype(np.uint32)


def unpack_indices(rows: np.ndarray, bits: int) -> np.ndarray:
    """Unpack rows (h,stride) uint8 to (h,stride*8/bits) samples of 1, 2, 4 or 8 bits."""
    if bits == 8:
        return rows
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return ((rows[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(rows), -1)


def extract_bit_field(words: np.ndarray, mask: int) -> np.ndarray:
    """Return the samples under a bit mask as uint8, rounded; 0 if the mask is empty.

    Raises:
        ImageError: with the class BrokenImage, if the bits of the mask are not contiguous.
    """
    if not mask:
        return np.zeros(words.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    sample_max = mask >> shift
    if sample_max & (sample_max + 1):
        raise broken_image(f"BMP: the bits of the mask {mask:#010x} are not contiguous")
    samples = (words & np.uint32(mask)) >> np.uint32(shift)
    if sample_max > 65535:
        surplus_bits = sample_max.bit_length() - 16
        samples, sample_max = samples >> np.uint32(surplus_bits), 65535
    return rescale(samples, sample_max, 255).astype(np.uint8)


def decode_runs(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Decode run-length encoded pixels in the order of the file.

    Returns:
        Samples (H,W) or (H,W,3) uint8, and whether each pixel was drawn, (H,W) bool.

    Raises:
        ImageError: with the class BrokenImage, if the file is truncated.
    """
    width, height, bits = header.width, header.height, header.bits
    size = 3 if bits == 24 else 1
    samples = np.zeros((height, width, size), np.uint8)
    is_drawn = np.zeros((height, width), bool)
    x, y, at = 0, 0, header.pixels_at
    while y < height:
        if at + 2 > len(data):
            raise truncated_error(y, height)
        count, value = data[at], data[at + 1]
        if count:
            run = data[at + 1 : at + 1 + size]
            at += 1 + size
            if len(run) < size:
                raise truncated_error(y, height)
            values = np.frombuffer(run, np.uint8)[::-1]
            # A run of 4 bits alternates between two samples.
            values = np.resize(unpack_indices(values[None], 4), (count, 1)) if bits == 4 else values
        elif value == 0:
            x, y, at = 0, y + 1, at + 2
            continue
        elif value == 1:
            break
        elif value == 2:
            if at + 4 > len(data):
                raise truncated_error(y, height)
            x, y, at = x + data[at + 2], y + data[at + 3], at + 4
            continue
        else:
            count = value
            literal_bytes = (count * bits + 7) // 8
            literal = np.frombuffer(data, np.uint8, literal_bytes, at + 2)
            at += 2 + literal_bytes + literal_bytes % 2

            values = literal.reshape(-1, 3)[:, ::-1] if bits == 24 else unpack_indices(literal[None], bits)[0, :count, None]
        visible = max(0, min(count, width - x))
        samples[y, x : x + visible] = values[:visible] if values.ndim == 2 else values
        is_drawn[y, x : x + visible] = True
        x += count
    return samples if size == 3 else samples[..., 0], is_drawn


def truncated_error(row: int, height: int) -> ImageError:
    """Return the error of run-length encoded pixels that end in a row."""
    return broken_image(f"BMP: the file is truncated in row {row} of {height}")


def read_colours(data: bytes, header: Header) -> tuple[bytes | None, ColourSpace | None, str]:
    """Read the colour space of a header of version 4 or 5.

    Returns:
        The ICC profile, the colour space, and what is ignored (see `StoredImage`).
    """
    if header.size < V4:
        return None, None, ""
    (space_type,) = struct.unpack_from("<I", data, 70)
    if space_type == EMBEDDED and header.size >= V5:
        at, size = struct.unpack_from("<II", data, 14 + 112)
        return data[14 + at : 14 + at + size] or b"\0", None, ""
    if space_type == LINKED:
        return None, None, "a profile in another file"
    if space_type != CALIBRATED:
        return None, None, ""
    # XYZ of red, green and blue have 30 fractional bits, gammas 16.
    endpoints = np.array(struct.unpack_from("<9I", data, 74)).reshape(3, 3) / 2**30
    gammas = np.array(struct.unpack_from("<3I", data, 110)) / 2**16
    if not endpoints.any() or not gammas.any():
        return None, None, ""
    if (endpoints.sum(1) <= 0).any() or (gammas < 0.1).any() or (gammas > 10).any():
        return None, None, "an invalid colour space"
    white = endpoints.sum(0)
    primaries = [value for x, y, z in (*endpoints, white) for value in (x / (x + y + z), y / (x + y + z))]
    gamma = float(gammas.mean())
    ignored = "" if np.ptp(gammas) < 0.01 else "different gammas of red, green and blue"
    return None, ColourSpace(tuple(primaries), gamma, f"gamma {gamma:.3g}"), ignored
