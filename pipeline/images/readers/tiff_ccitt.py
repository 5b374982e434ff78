"""Strips of CCITT fax codes (ITU-T T.4 and T.6), and whether they hold all that is read from them.

No decoder of fax codes says that a strip was cut off or damaged: rows that cannot be read stay white. But a picture has
only one correct code, so what was read is coded once more and must give the strip again.
"""

import io
import re
from collections.abc import Iterator
from itertools import chain, islice, zip_longest

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.readers.tiff_page import ROWS_PER_STRIP, T4_OPTIONS, broken, picture_page

RLE, GROUP3, GROUP4 = 2, 3, 4
NAMES = {RLE: "tiff_ccitt", GROUP3: "group3", GROUP4: "group4"}
TWO_DIMENSIONAL = 1
"""The bit of T4Options for rows that are coded by the row above."""
END_OF_LINE = re.compile(rb"\x00{11,}\x01")
END_OF_BLOCK = b"\x00" * 11 + b"\x01"


def fax_rows(kind: int, data: bytes, columns: int, rows: int, options: int) -> np.ndarray:
    """(rows, columns) uint8 of 0 and 1 from a strip of fax codes.

    Raises: ImageError when the strip does not hold all rows, or is damaged.
    """
    # No code takes more bits: runs of one pixel have 6 and 3.
    data = data[: rows * (columns * 5 // 8 + 16)]
    if kind == RLE:
        array = imagecodecs.ccittrle_decode(data, rows, columns)
    elif kind == GROUP3:
        array = imagecodecs.ccittfax3_decode(data, rows, columns, t4options=options)
    else:
        array = imagecodecs.ccittfax4_decode(data, rows, columns)
    if not is_code_of(kind, data, array, options):
        raise broken(f"a damaged strip of {NAMES[kind]} fax codes")
    return array


def is_code_of(kind: int, data: bytes, array: np.ndarray, options: int) -> bool:
    """Whether a strip is the code of all rows of an array; of rows coded by the row above, only their number is checked."""
    if kind == GROUP3 and options & TWO_DIMENSIONAL:
        # How often a row stands for itself is up to the encoder. The marks at the end have one bit between them.
        whole = (row for row in lines(data) if len(row) > 1)
        return len(list(islice(whole, len(array)))) == len(array)
    code = encoded(kind, array)
    if kind == RLE:
        return data.startswith(code)
    if kind == GROUP3:
        return all(row == given for row, given in zip_longest(lines(code), islice(lines(data), len(array))))
    # The mark at the end may be missing. The last bytes are compared by the bit.
    sure = max(0, len(code) - 8)
    end, given = bits(code[sure:]), bits(data[sure : len(code)])
    return data.startswith(code[:sure]) and given.startswith(end[: end.rindex(END_OF_BLOCK * 2)])


def lines(data: bytes) -> Iterator[bytes]:
    """The codes of rows with a mark between them, one bit a byte."""
    whole, start = bits(data), 0
    for mark in chain(END_OF_LINE.finditer(whole), (None,)):
        row = whole[start : mark.start() if mark else len(whole)].rstrip(b"\0")
        start = mark.end() if mark else start
        if row:
            yield row


def bits(data: bytes) -> bytes:
    """Each bit as a byte of 0 or 1."""
    return np.unpackbits(np.frombuffer(data, np.uint8)).tobytes()


def encoded(kind: int, array: np.ndarray) -> bytes:
    """The fax codes of (rows, columns) uint8 of 0 and 1, by libtiff."""
    rows, columns = array.shape
    image = Image.frombytes("1", (columns, rows), np.packbits(array, axis=1).tobytes())
    file = io.BytesIO()
    image.save(file, "TIFF", compression=NAMES[kind], tiffinfo={ROWS_PER_STRIP: rows, T4_OPTIONS: 0})
    page, _ = picture_page(file.getvalue())
    ((_, _, ((offset, count),)),) = page.segments()
    return file.getvalue()[offset : offset + count]
