"""Old-style JPEG of a TIFF (TIFF 6.0, section 22) as one JPEG stream, which libjpeg reads.

The tables stand at places in the file, without their marker segments; the strips hold nothing but picture data.
"""

import struct

from imagemill.pipeline.images.readers.jpeg_structure import DHT, DQT, END_MARK, SOS
from imagemill.pipeline.images.readers.tiff_page import (
    JPEG_OFFSET,
    ROWS_PER_STRIP,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    TILE_WIDTH,
    YCBCR_SUBSAMPLING,
    Page,
    broken,
    unsupported,
)

RESTART_INTERVAL, QUANTIZATION, DC_TABLES, AC_TABLES = 515, 519, 520, 521
START, FRAME, RESTART = b"\xff\xd8", 0xC0, 0xDD


def jpeg_stream(data: bytes, page: Page) -> bytes:
    """The picture of a page as a JPEG.

    Raises: ImageError for a page without tables, and for tiles.
    """
    start = page.number(JPEG_OFFSET, 0)
    if start and data[start : start + 2] == START and (end := data.find(END_MARK, start)) > 0:
        stream = data[start:]
        # The stream may be the whole picture, whose strips then lie in it.
        if data.find(bytes((0xFF, SOS)), start, end) > 0 or stream.find(bytes((0xFF, SOS))) > 0:
            return stream
    if TILE_WIDTH in page.entries:
        raise unsupported("tiles of old-style JPEG")
    tables = [page.numbers(tag) for tag in (QUANTIZATION, DC_TABLES, AC_TABLES)]
    if min(map(len, tables)) < page.samples:
        raise broken("old-style JPEG without its tables")
    across, down = (page.numbers(YCBCR_SUBSAMPLING) or [2, 2])[:2] if page.samples > 1 else (1, 1)
    parts = [START]
    for n in range(page.samples):
        parts.append(segment(DQT, bytes([n]) + data[tables[0][n] : tables[0][n] + 64]))
        for kind in (0, 1):
            at = tables[1 + kind][n]
            parts.append(segment(DHT, bytes([kind << 4 | n]) + data[at : at + 16 + sum(data[at : at + 16])]))
    width, height = page.size
    sampling = [across << 4 | down] + [0x11] * (page.samples - 1)
    frame = struct.pack(">BHHB", 8, height, width, page.samples)
    parts.append(segment(FRAME, frame + b"".join(bytes((n, factor, n)) for n, factor in enumerate(sampling))))
    rows = min(page.number(ROWS_PER_STRIP, height), height)
    strips = list(zip(page.numbers(STRIP_OFFSETS), page.numbers(STRIP_COUNTS), strict=False))
    interval = page.number(RESTART_INTERVAL, 0)
    if len(strips) > 1:
        # Each strip begins anew.
        interval = -(-width // (8 * across)) * (rows // (8 * down))
    if interval:
        parts.append(segment(RESTART, struct.pack(">H", interval)))
    scan = b"".join(bytes((n, n << 4 | n)) for n in range(page.samples))
    parts.append(segment(SOS, bytes([page.samples]) + scan + b"\0\x3f\0"))
    for n, (at, count) in enumerate(strips):
        mark = bytes((0xFF, 0xD0 + (n - 1) % 8)) if n else b""
        parts.append(mark + data[at : at + count].removesuffix(END_MARK))
    return b"".join((*parts, END_MARK))


def segment(marker: int, content: bytes) -> bytes:
    """A marker segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
