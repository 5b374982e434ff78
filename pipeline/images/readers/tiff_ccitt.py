"""Decode strips of CCITT fax codes (ITU-T T.4 and T.6), and check that all rows are there.

No fax decoder reports a truncated or damaged strip: rows that cannot be decoded stay white. But an image has only one
correct code, so the decoded rows are encoded again and must give the strip.
"""

import io
import re
from collections.abc import Iterator
from itertools import chain, islice, zip_longest

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.readers.tiff_page import ROWS_PER_STRIP, T4_OPTIONS, broken_tiff, find_image_page

RLE, GROUP3, GROUP4 = 2, 3, 4
PILLOW_NAMES = {RLE: "tiff_ccitt", GROUP3: "group3", GROUP4: "group4"}
TWO_DIMENSIONAL = 1
"""The bit of T4Options for rows that are coded relative to the row above."""
END_OF_LINE = re.compile(rb"\x00{11,}\x01")
END_OF_BLOCK = b"\x00" * 11 + b"\x01"


def decode_fax(compression: int, data: bytes, columns: int, rows: int, options: int) -> np.ndarray:
    """Decode a strip of fax codes.

    Args:
        compression: RLE, GROUP3 or GROUP4.
        data: the strip.
        columns: of the strip.
        rows: of the strip.
        options: the value of the tag T4Options.

    Returns:
        (rows, columns) uint8 of 0 and 1.

    Raises:
        ImageError: with the class BrokenImage, if rows are missing or damaged.
    """
    # Codes are longest for runs of one pixel, with 6 and 3 bits.
    data = data[: rows * (columns * 5 // 8 + 16)]
    if compression == RLE:
        pixels = imagecodecs.ccittrle_decode(data, rows, columns)
    elif compression == GROUP3:
        pixels = imagecodecs.ccittfax3_decode(data, rows, columns, t4options=options)
    else:
        pixels = imagecodecs.ccittfax4_decode(data, rows, columns)
    if not is_code_of(compression, data, pixels, options):
        raise broken_tiff(f"a strip of {PILLOW_NAMES[compression]} fax codes is damaged or truncated")
    return pixels


def is_code_of(compression: int, data: bytes, pixels: np.ndarray, options: int) -> bool:
    """Return whether a strip is the code of all rows of `pixels`.

    Of two-dimensional codes, only the rows are counted.
    """
    if compression == GROUP3 and options & TWO_DIMENSIONAL:
        # The encoder is free to choose which rows are coded alone. The markers at the end have one bit between them.
        coded_rows = (row for row in iterate_rows(data) if len(row) > 1)
        return len(list(islice(coded_rows, len(pixels)))) == len(pixels)
    code = encode_fax(compression, pixels)
    if compression == RLE:
        return data.startswith(code)
    if compression == GROUP3:
        return all(a == b for a, b in zip_longest(iterate_rows(code), islice(iterate_rows(data), len(pixels))))
    # The end marker may be missing, so compare the last bytes bit by bit.
    tail_at = max(0, len(code) - 8)
    expected_tail, tail = unpack_bits(code[tail_at:]), unpack_bits(data[tail_at : len(code)])
    return data.startswith(code[:tail_at]) and tail.startswith(expected_tail[: expected_tail.rindex(END_OF_BLOCK * 2)])


def iterate_rows(data: bytes) -> Iterator[bytes]:
    """Yield the codes of rows that are separated by end-of-line markers, one byte per bit."""
    bits, start = unpack_bits(data), 0
    for marker in chain(END_OF_LINE.finditer(bits), (None,)):
        row = bits[start : marker.start() if marker else len(bits)].rstrip(b"\0")
        start = marker.end() if marker else start
        if row:
            yield row


def unpack_bits(data: bytes) -> bytes:
    """Return each bit as a byte of 0 or 1."""
    return np.unpackbits(np.frombuffer(data, np.uint8)).tobytes()


def encode_fax(compression: int, pixels: np.ndarray) -> bytes:
    """Encode (rows, columns) uint8 of 0 and 1 with libtiff."""
    rows, columns = pixels.shape
    image = Image.frombytes("1", (columns, rows), np.packbits(pixels, axis=1).tobytes())
    file = io.BytesIO()
    image.save(file, "TIFF", compression=PILLOW_NAMES[compression], tiffinfo={ROWS_PER_STRIP: rows, T4_OPTIONS: 0})
    page, _ = find_image_page(file.getvalue())
    ((_, _, ((offset, size),)),) = page.segments()
    return file.getvalue()[offset : offset + size]
