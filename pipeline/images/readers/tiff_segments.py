"""Decode the strips and tiles of a TIFF with the decoders of imagecodecs.

These decoders return what they can of a truncated segment without an error. So everything is counted here: a segment
that holds fewer samples than it should is a broken image, never an image that is half gray.
"""

import struct
from collections.abc import Callable
from functools import partial

import imagecodecs
import numpy as np

from imagemill.pipeline.images.readers.jpeg import decode_jpeg
from imagemill.pipeline.images.readers.jpeg_structure import APP0, END_OF_IMAGE, FRAME_MARKERS, parse_structure
from imagemill.pipeline.images.readers.tiff_ccitt import decode_fax
from imagemill.pipeline.images.readers.tiff_page import (
    JPEG_TABLES,
    LERC_PARAMETERS,
    OLD_JPEG,
    SAMPLES,
    T4_OPTIONS,
    YCBCR_SUBSAMPLING,
    Page,
    broken_tiff,
    unsupported_tiff,
)
from imagemill.pipeline.images.readers.webp import parse_webp_size

RowDecoder = Callable[[slice], np.ndarray]
"""Returns rows of a segment: (rows, columns, samples of the plane) uint8 or uint16. 24-bit samples become 16-bit samples."""

PALETTE, YCBCR = 3, 6
DEFLATE, ZSTD = 8, 50000
BYTE_DECODERS: dict[int, Callable[..., bytes | bytearray]] = {
    5: imagecodecs.lzw_decode,
    DEFLATE: imagecodecs.deflate_decode,
    32773: imagecodecs.packbits_decode,
    32946: imagecodecs.deflate_decode,
    34925: imagecodecs.lzma_decode,
    34926: imagecodecs.zstd_decode,
    ZSTD: imagecodecs.zstd_decode,
}
"""By compression: decompresses a segment to bytes, up to a maximum."""
FAX = (2, 3, 4)
LERC, JPEGS = 34887, (OLD_JPEG, 7)
IMAGE_DECODERS: dict[int, tuple[str, Callable[[bytes], tuple[int, int] | None], Callable[..., np.ndarray]]] = {
    33005: ("JPEG 2000", lambda data: parse_jpeg2000_size(data), imagecodecs.jpeg2k_decode),
    34712: ("JPEG 2000", lambda data: parse_jpeg2000_size(data), imagecodecs.jpeg2k_decode),
    LERC: ("LERC", lambda data: parse_lerc_size(data), imagecodecs.lerc_decode),
    34927: ("WebP", parse_webp_size, imagecodecs.webp_decode),
    34933: ("PNG", lambda data: parse_png_size(data), imagecodecs.png_decode),
    50001: ("WebP", parse_webp_size, imagecodecs.webp_decode),
}
"""By compression whose segments are image files: the name of their format, what parses their size, and their decoder."""
UNSUPPORTED_COMPRESSIONS = {
    32766: "NeXT",
    32767: "Sony ARW",
    32771: "CCITT RLE of whole words",
    32809: "ThunderScan",
    32908: "PixarFilm",
    32909: "PixarLog",
    33003: "JPEG 2000 of YCbCr",
    34661: "JBIG",
    34676: "SGI LogLuv (HDR)",
    34677: "SGI LogLuv (HDR)",
    34713: "Nikon NEF",
    34892: "lossy DNG JPEG",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
"""A marker segment without its last byte, which says what the components of a JPEG are: 0 for RGB or CMYK, 1 for YCbCr."""
MAX_SAMPLES = 16


def check_compression(page: Page) -> None:
    """Check that the compression is supported for the samples of a page.

    Raises:
        ImageError: with the class UnsupportedFormat.
    """
    compression, bits = page.compression, page.bits
    if compression in FAX and (bits, page.samples) != (1, 1):
        raise unsupported_tiff(f"CCITT fax of {page.samples} samples of {bits} bits")
    if compression in JPEGS and bits != 8:
        raise unsupported_tiff(f"JPEG of {bits}-bit samples")
    if compression in JPEGS and not page.is_planar and page.samples not in (1, 3, 4):
        raise unsupported_tiff(f"JPEG of {page.samples} samples per pixel")
    if compression in IMAGE_DECODERS and bits not in (8, 16):
        raise unsupported_tiff(f"{IMAGE_DECODERS[compression][0]} of {bits}-bit samples")
    if compression in IMAGE_DECODERS and page.photometric == YCBCR:
        raise unsupported_tiff(f"{IMAGE_DECODERS[compression][0]} of YCbCr")
    if compression not in (1, *BYTE_DECODERS, *FAX, *JPEGS, *IMAGE_DECODERS):
        raise unsupported_tiff(f"compression {UNSUPPORTED_COMPRESSIONS.get(compression, compression)}")
    if compression in BYTE_DECODERS and page.predictor not in (1, 2):
        raise unsupported_tiff(f"predictor {page.predictor} of integers")
    if compression == LERC and page.predictor != 1:
        # Programs disagree about whether the predictor applies.
        raise unsupported_tiff("LERC and a predictor")
    if compression in (*JPEGS, *IMAGE_DECODERS) and compression != LERC and page.photometric == PALETTE:
        raise unsupported_tiff(f"a palette in {'JPEG' if compression in JPEGS else IMAGE_DECODERS[compression][0]}")
    if compression in BYTE_DECODERS and page.predictor == 2 and bits not in (8, 16):
        raise unsupported_tiff(f"a predictor of {bits}-bit samples")


def open_segment(page: Page, stored: memoryview, visible_rows: int) -> RowDecoder:
    """Decompress a segment, and return what decodes its rows.

    Args:
        page: the page of the segment.
        stored: the bytes of the segment in the file.
        visible_rows: how many rows of the segment are inside the image; fewer than all at the lower edge.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    samples = 1 if page.is_planar else page.samples
    compression, (columns, rows) = page.compression, page.segment_size
    if compression in JPEGS:
        return slice_image(page, decode_jpeg_segment(page, bytes(stored)), visible_rows, samples)
    if compression in IMAGE_DECODERS:
        return slice_image(page, decode_image_segment(page, bytes(stored), samples), visible_rows, samples)
    if page.is_bit_reversed:
        stored = memoryview(imagecodecs.bitorder_decode(bytes(stored)))
    if compression in FAX:
        bits = decode_fax(compression, bytes(stored), columns, visible_rows, page.number(T4_OPTIONS, 0))
        return slice_image(page, bits, visible_rows, 1)
    across, down = read_subsampling(page)
    if (across, down) != (1, 1):
        raw = decompress(page, stored, -(-columns // across) * (across * down + 2) * -(-rows // down))
        return slice_image(page, unpack_ycbcr(raw, columns, visible_rows, across, down), visible_rows, 3)
    stride = -(-columns * samples * page.bits // 8)
    raw = decompress(page, stored, stride * rows)
    check_length(raw, stride * visible_rows)
    return partial(unpack_rows, page, raw, stride, samples)


def decompress(page: Page, stored: memoryview, max_bytes: int) -> memoryview:
    """Return the bytes of a segment, at most `max_bytes`."""
    if page.compression in BYTE_DECODERS:
        return memoryview(BYTE_DECODERS[page.compression](bytes(stored), out=max_bytes))
    return stored[:max_bytes]


def check_length(raw: memoryview, needed: int) -> None:
    """Check that a segment has the bytes that its pixels need.

    Raises:
        ImageError: with the class BrokenImage.
    """
    if len(raw) < needed:
        raise broken_tiff(f"a strip or tile is truncated: {len(raw):,} of {needed:,} bytes")


def unpack_rows(page: Page, raw: memoryview, stride: int, samples: int, rows: slice) -> np.ndarray:
    """Return rows of a decompressed segment, as a `RowDecoder` does.

    Args:
        page: the page of the segment.
        raw: the decompressed segment.
        stride: bytes per row.
        samples: samples per pixel of the plane.
        rows: of the segment.
    """
    bits, columns = page.bits, page.segment_size[0]
    part = raw[rows.start * stride : rows.stop * stride]
    shape = (rows.stop - rows.start, columns, samples)
    if bits == 8:
        array = np.frombuffer(part, np.uint8).reshape(shape)
    elif bits == 16:
        array = np.frombuffer(part, f"{page.order}u2").reshape(shape).astype(np.uint16, copy=False)
    elif bits == 24:
        upper_bytes = slice(1, 3) if page.order == "<" else slice(0, 2)
        upper = np.frombuffer(part, np.uint8).reshape(*shape, 3)[..., upper_bytes]
        array = np.ascontiguousarray(upper).view(f"{page.order}u2")[..., 0].astype(np.uint16, copy=False)
    else:
        dtype = np.uint8 if bits < 8 else np.uint16
        array = imagecodecs.packints_decode(bytes(part), dtype, bits, runlen=columns * samples).reshape(shape)
    if page.compression in BYTE_DECODERS and page.predictor == 2:
        array = imagecodecs.delta_decode(array, axis=-2)
    return array


def slice_image(page: Page, array: np.ndarray, visible_rows: int, samples: int) -> RowDecoder:
    """Check the shape of a segment that was decoded as an image; return what slices its rows.

    A segment at the edge of the image may consist of its visible part alone.

    Raises:
        ImageError: with the class BrokenImage.
    """
    array = array.reshape(*array.shape[:2], -1)
    width, columns = page.size[0], page.segment_size[0]
    if array.shape[0] < visible_rows or array.shape[1] < min(width, columns) or array.shape[2] != samples:
        size = f"{array.shape[1]}×{array.shape[0]} pixels with {array.shape[2]} samples"
        expected = f"{min(width, columns)}×{visible_rows} with {samples}"
        raise broken_tiff(f"a strip or tile has {size}, expected {expected}")
    return array.__getitem__


def decode_image_segment(page: Page, data: bytes, samples: int) -> np.ndarray:
    """Decode a segment that is an image file of another format.

    Raises:
        ImageError: with the class BrokenImage.
    """
    name, parse_size, decode = IMAGE_DECODERS[page.compression]
    if name == "LERC" and (lerc_compression := [*page.numbers(LERC_PARAMETERS), 0, 0][1]):
        # The LERC data is compressed once more, and hardly larger than its samples.
        columns, rows = page.segment_size
        max_bytes = 2 * columns * rows * samples * page.bits // 8 + 4096
        data = bytes(BYTE_DECODERS[ZSTD if lerc_compression == 2 else DEFLATE](data, out=max_bytes))
    check_segment_size(page, parse_size(data), name)
    array = decode(data, hasalpha=samples == 4) if name == "WebP" else decode(data)
    if array.dtype != (np.uint8 if page.bits == 8 else np.uint16):
        raise broken_tiff(f"a {name} strip or tile has {array.dtype} samples, expected {page.bits} bits")
    return array


def check_segment_size(page: Page, size: tuple[int, int] | None, name: str) -> None:
    """Check that a segment is no larger than its page declares, before memory is allocated.

    Args:
        page: the page of the segment.
        size: (width, height) in the header of the segment; None if the header is damaged.
        name: of the format of the segment.

    Raises:
        ImageError: with the class BrokenImage.
    """
    columns, rows = page.segment_size
    # Blocks of JPEG may be padded.
    if size is None or size[0] > columns + 63 or size[1] > rows + 63:
        declared = "a damaged header" if size is None else f"{size[0]}×{size[1]} pixels"
        raise broken_tiff(f"a {name} strip or tile has {declared}, expected {columns}×{rows} pixels")


def parse_lerc_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in a LERC header of version 2; None if it is not valid."""
    if len(data) < 26 or not data.startswith(b"Lerc2 "):
        return None
    version, *fields = struct.unpack_from("<5i", data, 6)
    # From version 3 on, a checksum comes first; from version 4 on, the number of samples follows the size.
    height, width, samples = fields[1:] if version >= 4 else (*fields[1:3], 1) if version == 3 else (*fields[:2], 1)
    return (width, height) if 0 < samples <= MAX_SAMPLES else None


def parse_png_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the header of a PNG; None if it is not valid."""
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" and len(data) >= 24 else None


def parse_jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in a JPEG 2000 codestream; None if it is not valid.

    The codestream may be inside boxes.
    """
    at = 0
    while data[at : at + 4] != b"\xff\x4f\xff\x51" and at + 8 <= len(data):
        length, box_type = struct.unpack_from(">I4s", data, at)
        at += 8 if box_type == b"jp2c" else max(length, 8)
    if at + 42 > len(data):
        return None
    right, lower, left, top = struct.unpack_from(">4I", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    return (right - left, lower - top) if samples <= MAX_SAMPLES else None


def read_subsampling(page: Page) -> tuple[int, int]:
    """Return the chroma subsampling (across, down) of YCbCr outside JPEG, else (1, 1).

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    if page.photometric != YCBCR or page.compression in JPEGS:
        return 1, 1
    across, down = (page.numbers(YCBCR_SUBSAMPLING) or [2, 2])[:2]
    if across not in (1, 2, 4) or down not in (1, 2, 4):
        raise broken_tiff(f"the chroma subsampling of {across}×{down} is invalid")
    if (across, down) != (1, 1) and (page.is_planar or page.bits != 8 or page.number(SAMPLES, 1) != 3):
        raise unsupported_tiff("subsampled YCbCr in planes, of more than 8 bits or with transparency")
    return across, down


def unpack_ycbcr(raw: memoryview, columns: int, rows: int, across: int, down: int) -> np.ndarray:
    """Unpack subsampled YCbCr to (rows, columns, 3) uint8.

    Args:
        raw: units of across×down luma samples followed by one Cb and one Cr.
        columns: of the segment.
        rows: of the segment that are inside the image.
        across: horizontal chroma subsampling.
        down: vertical chroma subsampling.

    Raises:
        ImageError: with the class BrokenImage, if the segment is truncated.
    """
    shape = (-(-rows // down), -(-columns // across), across * down + 2)
    needed = shape[0] * shape[1] * shape[2]
    check_length(raw, needed)
    units = np.frombuffer(raw, np.uint8, needed).reshape(shape)
    luma = units[..., :-2].reshape(*shape[:2], down, across).swapaxes(1, 2).reshape(shape[0] * down, -1)
    chroma = units[..., -2:].repeat(down, 0).repeat(across, 1)
    return np.dstack([luma, chroma])[:rows, :columns]


def decode_jpeg_segment(page: Page, data: bytes) -> np.ndarray:
    """Decode a JPEG segment to the colours of the page. YCbCr becomes RGB.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat. Damaged segments are always errors.
    """
    tables = page.raw_value(JPEG_TABLES) or b""
    samples = 1 if page.is_planar else page.samples
    start = b"\xff\xd8"
    jpeg = start + tables.removeprefix(start).removesuffix(END_OF_IMAGE) + data.removeprefix(start)
    structure = parse_structure(jpeg)
    if structure.bits != 8:
        raise unsupported_tiff(f"JPEG of {structure.bits}-bit samples")
    if len(structure.components) != samples:
        raise broken_tiff(f"a JPEG segment has {len(structure.components)} samples per pixel, expected {samples}")
    check_segment_size(page, (structure.width, structure.height), "JPEG")
    if samples > 1 and all(segment.marker != APP0 for segment in structure.segments):
        # Without a marker, libjpeg guesses the colours from the component numbers. The page says what they are.
        colour_marker = ADOBE + (b"\1" if page.photometric == YCBCR else b"\0")
        frame = next(segment.begin for segment in structure.segments if segment.marker in FRAME_MARKERS)
        jpeg = jpeg[:frame] + colour_marker + jpeg[frame:]
        structure = parse_structure(jpeg)
    pixels, damage = decode_jpeg(jpeg, structure)
    if damage:
        raise broken_tiff(f"a JPEG segment is damaged: {damage}")
    return pixels
