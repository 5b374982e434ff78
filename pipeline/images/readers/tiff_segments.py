"""The samples of a strip or tile of a TIFF, by the decoders of imagecodecs.

Those decoders give what they have of a segment that is cut off, so everything here is counted: a segment that holds fewer
samples than it must is a broken image, never a gray half of one.
"""

import struct
from collections.abc import Callable
from functools import partial

import imagecodecs
import numpy as np

from imagemill.pipeline.images.readers.jpeg import decoded as decoded_jpeg
from imagemill.pipeline.images.readers.jpeg_structure import APP0, END_MARK, FRAMES, parse_structure
from imagemill.pipeline.images.readers.tiff_ccitt import fax_rows
from imagemill.pipeline.images.readers.tiff_page import (
    JPEG_TABLES,
    LERC_PARAMETERS,
    OLD_JPEG,
    SAMPLES,
    T4_OPTIONS,
    YCBCR_SUBSAMPLING,
    Page,
    broken,
    unsupported,
)
from imagemill.pipeline.images.readers.webp import parse_webp_size

PALETTE, YCBCR = 3, 6
DEFLATE, ZSTD = 8, 50000
BYTES: dict[int, Callable[..., bytes | bytearray]] = {
    5: imagecodecs.lzw_decode,
    DEFLATE: imagecodecs.deflate_decode,
    32773: imagecodecs.packbits_decode,
    32946: imagecodecs.deflate_decode,
    34925: imagecodecs.lzma_decode,
    34926: imagecodecs.zstd_decode,
    ZSTD: imagecodecs.zstd_decode,
}
"""Compressions of bytes: each takes a segment and the most bytes it may become."""
FAX = (2, 3, 4)
LERC, JPEGS = 34887, (OLD_JPEG, 7)
IMAGES: dict[int, tuple[str, Callable[[bytes], tuple[int, int] | None], Callable[..., np.ndarray]]] = {
    33005: ("JPEG 2000", lambda data: jpeg2000_size(data), imagecodecs.jpeg2k_decode),
    34712: ("JPEG 2000", lambda data: jpeg2000_size(data), imagecodecs.jpeg2k_decode),
    LERC: ("LERC", lambda data: lerc_size(data), imagecodecs.lerc_decode),
    34927: ("WebP", parse_webp_size, imagecodecs.webp_decode),
    34933: ("PNG", lambda data: png_size(data), imagecodecs.png_decode),
    50001: ("WebP", parse_webp_size, imagecodecs.webp_decode),
}
"""Segments that are image files: the name of the format, what their header says of the size, and the decoder."""
OTHERS = {
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
"""Names for compressions that are not supported."""
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
"""A marker that says by one more byte what the components of a JPEG are: 0 as they are, 1 YCbCr."""
MAX_SAMPLES = 16


def check_compression(page: Page) -> None:
    """Raises: ImageError for a compression that is not supported, or not for such samples."""
    kind, bits = page.compression, page.bits
    if kind in FAX and (bits, page.samples) != (1, 1):
        raise unsupported(f"CCITT fax of {page.samples} samples of {bits} bits")
    if kind in JPEGS and bits != 8:
        raise unsupported(f"JPEG of {bits}-bit samples")
    if kind in JPEGS and not page.is_planar and page.samples not in (1, 3, 4):
        raise unsupported(f"JPEG of {page.samples} samples per pixel")
    if kind in IMAGES and bits not in (8, 16):
        raise unsupported(f"{IMAGES[kind][0]} of {bits}-bit samples")
    if kind in IMAGES and page.photometric == YCBCR:
        raise unsupported(f"{IMAGES[kind][0]} of YCbCr")
    if kind not in (1, *BYTES, *FAX, *JPEGS, *IMAGES):
        raise unsupported(f"compression {OTHERS.get(kind, kind)}")
    if kind in BYTES and page.predictor not in (1, 2):
        raise unsupported(f"predictor {page.predictor} of integers")
    if kind == LERC and page.predictor != 1:
        # Some programs use it and others do not.
        raise unsupported("LERC with a predictor")
    if kind in (*JPEGS, *IMAGES) and kind != LERC and page.photometric == PALETTE:
        raise unsupported(f"a palette in {'JPEG' if kind in JPEGS else IMAGES[kind][0]}")
    if kind in BYTES and page.predictor == 2 and bits not in (8, 16):
        raise unsupported(f"a predictor of {bits}-bit samples")


def segment_rows(page: Page, stored: memoryview, visible: int) -> Callable[[slice], np.ndarray]:
    """What gives the rows of a segment as (rows, columns, samples of the plane) uint8 or uint16; 24 bits become 16.

    Args:
        stored: the segment as it is in the file.
        visible: the rows that the picture has of it, which is fewer than all at the lower edge.

    Raises: ImageError when the segment is damaged.
    """
    samples = 1 if page.is_planar else page.samples
    kind, (columns, rows) = page.compression, page.segment_size
    if kind in JPEGS:
        return image_rows(page, jpeg(page, bytes(stored)), visible, samples)
    if kind in IMAGES:
        return image_rows(page, image(page, bytes(stored), samples), visible, samples)
    if page.is_turned:
        stored = memoryview(imagecodecs.bitorder_decode(bytes(stored)))
    if kind in FAX:
        array = fax_rows(kind, bytes(stored), columns, visible, page.number(T4_OPTIONS, 0))
        return image_rows(page, array, visible, 1)
    across, down = subsampling(page)
    if (across, down) != (1, 1):
        raw = unpacked(page, stored, -(-columns // across) * (across * down + 2) * -(-rows // down))
        return image_rows(page, ycbcr(raw, columns, visible, across, down), visible, 3)
    stride = -(-columns * samples * page.bits // 8)
    raw = unpacked(page, stored, stride * rows)
    check_length(raw, stride * visible)
    return partial(rows_of_bytes, page, raw, stride, samples)


def unpacked(page: Page, stored: memoryview, most: int) -> memoryview:
    """The bytes of a segment, at most `most`."""
    if page.compression in BYTES:
        return memoryview(BYTES[page.compression](bytes(stored), out=most))
    return stored[:most]


def check_length(raw: memoryview, need: int) -> None:
    """Raises: ImageError for a segment of fewer bytes than its pixels need."""
    if len(raw) < need:
        raise broken(f"a strip or tile of {len(raw):,} bytes, not {need:,}")


def rows_of_bytes(page: Page, raw: memoryview, stride: int, samples: int, rows: slice) -> np.ndarray:
    """Some rows of a segment that is unpacked, of `stride` bytes a row."""
    bits, columns = page.bits, page.segment_size[0]
    part = raw[rows.start * stride : rows.stop * stride]
    shape = (rows.stop - rows.start, columns, samples)
    if bits == 8:
        array = np.frombuffer(part, np.uint8).reshape(shape)
    elif bits == 16:
        array = np.frombuffer(part, f"{page.order}u2").reshape(shape).astype(np.uint16, copy=False)
    elif bits == 24:
        high = np.frombuffer(part, np.uint8).reshape(*shape, 3)[..., slice(1, 3) if page.order == "<" else slice(0, 2)]
        array = np.ascontiguousarray(high).view(f"{page.order}u2")[..., 0].astype(np.uint16, copy=False)
    else:
        dtype = np.uint8 if bits < 8 else np.uint16
        array = imagecodecs.packints_decode(bytes(part), dtype, bits, runlen=columns * samples).reshape(shape)
    if page.compression in BYTES and page.predictor == 2:
        array = imagecodecs.delta_decode(array, axis=-2)
    return array


def image_rows(page: Page, array: np.ndarray, visible: int, samples: int) -> Callable[[slice], np.ndarray]:
    """What gives rows of a segment that was decoded as an image; one at an edge may be of the visible part alone."""
    array = array.reshape(*array.shape[:2], -1)
    width, columns = page.size[0], page.segment_size[0]
    if array.shape[0] < visible or array.shape[1] < min(width, columns) or array.shape[2] != samples:
        raise broken(f"a strip or tile of {array.shape[1]}×{array.shape[0]} with {array.shape[2]} samples")
    return array.__getitem__


def image(page: Page, data: bytes, samples: int) -> np.ndarray:
    """A segment that is an image file of another format."""
    name, size_of, decode = IMAGES[page.compression]
    if name == "LERC" and (again := [*page.numbers(LERC_PARAMETERS), 0, 0][1]):
        # It is compressed once more, and hardly larger than its samples.
        columns, rows = page.segment_size
        most = 2 * columns * rows * samples * page.bits // 8 + 4096
        data = bytes(BYTES[ZSTD if again == 2 else DEFLATE](data, out=most))
    check_segment_size(page, size_of(data), name)
    array = decode(data, hasalpha=samples == 4) if name == "WebP" else decode(data)
    if array.dtype != (np.uint8 if page.bits == 8 else np.uint16):
        raise broken(f"a {name} strip or tile of {array.dtype} samples, not {page.bits} bits")
    return array


def check_segment_size(page: Page, size: tuple[int, int] | None, name: str) -> None:
    """Raises: ImageError for a segment that would be larger than the page says, before room is made for it."""
    columns, rows = page.segment_size
    # Blocks of JPEG may be filled up.
    if size is None or size[0] > columns + 63 or size[1] > rows + 63:
        raise broken(f"a {name} strip or tile of {size}, not {(columns, rows)}")


def lerc_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a LERC of version 2 by its header; None for another, or for more samples than a picture has."""
    if len(data) < 26 or not data.startswith(b"Lerc2 "):
        return None
    version, *head = struct.unpack_from("<5i", data, 6)
    # Version 3 has a checksum first, and version 4 the number of samples.
    height, width, samples = head[1:] if version >= 4 else (*head[1:3], 1) if version == 3 else (*head[:2], 1)
    return (width, height) if 0 < samples <= MAX_SAMPLES else None


def png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG by its header; None for what is none."""
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" and len(data) >= 24 else None


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG 2000 by its codestream, which may be in boxes; None for what is none."""
    at = 0
    while data[at : at + 4] != b"\xff\x4f\xff\x51" and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 8 if kind == b"jp2c" else max(length, 8)
    if at + 42 > len(data):
        return None
    right, lower, left, top = struct.unpack_from(">4I", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    return (right - left, lower - top) if samples <= MAX_SAMPLES else None


def subsampling(page: Page) -> tuple[int, int]:
    """(across, down) of the chroma of a YCbCr that is not in JPEG; (1, 1) of all others."""
    if page.photometric != YCBCR or page.compression in JPEGS:
        return 1, 1
    across, down = (page.numbers(YCBCR_SUBSAMPLING) or [2, 2])[:2]
    if across not in (1, 2, 4) or down not in (1, 2, 4):
        raise broken(f"chroma subsampling of {across}×{down}")
    if (across, down) != (1, 1) and (page.is_planar or page.bits != 8 or page.number(SAMPLES, 1) != 3):
        raise unsupported("subsampled YCbCr in planes, of more than 8 bits or with transparency")
    return across, down


def ycbcr(raw: memoryview, columns: int, rows: int, across: int, down: int) -> np.ndarray:
    """(rows, columns, 3) uint8 of YCbCr whose units hold the lumas of `across`×`down` pixels and one pair of chromas."""
    shape = (-(-rows // down), -(-columns // across), across * down + 2)
    need = shape[0] * shape[1] * shape[2]
    check_length(raw, need)
    units = np.frombuffer(raw, np.uint8, need).reshape(shape)
    luma = units[..., :-2].reshape(*shape[:2], down, across).swapaxes(1, 2).reshape(shape[0] * down, -1)
    chroma = units[..., -2:].repeat(down, 0).repeat(across, 1)
    return np.dstack([luma, chroma])[:rows, :columns]


def jpeg(page: Page, data: bytes) -> np.ndarray:
    """A segment of JPEG in the colours of the page: YCbCr becomes RGB.

    Raises: ImageError, for damage too.
    """
    tables = page.bytes_of(JPEG_TABLES) or b""
    samples = 1 if page.is_planar else page.samples
    whole = b"\xff\xd8" + tables.removeprefix(b"\xff\xd8").removesuffix(END_MARK) + data.removeprefix(b"\xff\xd8")
    structure = parse_structure(whole)
    if structure.bits != 8:
        raise unsupported(f"JPEG of {structure.bits}-bit samples")
    if len(structure.components) != samples:
        raise broken(f"JPEG of {len(structure.components)} samples per pixel, not {samples}")
    check_segment_size(page, (structure.width, structure.height), "JPEG")
    if samples > 1 and all(segment.marker != APP0 for segment in structure.segments):
        # What the samples are is said by the page, and not guessed from the numbers of the components.
        told = ADOBE + (b"\1" if page.photometric == YCBCR else b"\0")
        frame = next(segment.begin for segment in structure.segments if segment.marker in FRAMES)
        whole = whole[:frame] + told + whole[frame:]
        structure = parse_structure(whole)
    pixels, damage = decoded_jpeg(whole, structure)
    if damage:
        raise broken(f"damaged JPEG: {damage}")
    return pixels
