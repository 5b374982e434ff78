"""Build one JPEG stream for libjpeg from old-style JPEG in a TIFF (TIFF 6.0, section 22).

In such a TIFF, tags point at the tables, which have no marker segments, and the strips contain only entropy-coded data.
"""

import struct

from imagemill.pipeline.images.readers.jpeg_structure import DHT, DQT, END_OF_IMAGE, SOS
from imagemill.pipeline.images.readers.tiff_page import (
    JPEG_OFFSET,
    ROWS_PER_STRIP,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    TILE_WIDTH,
    YCBCR_SUBSAMPLING,
    Page,
    broken_tiff,
    unsupported_tiff,
)

RESTART_INTERVAL, QUANTIZATION, DC_TABLES, AC_TABLES = 515, 519, 520, 521
START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", bytes((0xFF, SOS))
BASELINE_FRAME, RESTART = 0xC0, 0xDD


def build_jpeg(data: bytes, page: Page) -> bytes:
    """Build a JPEG file of a page.

    Raises:
        ImageError: with the class BrokenImage for a page without tables, or UnsupportedFormat for tiles.
    """
    start = page.number(JPEG_OFFSET, 0)
    if start and data[start : start + 2] == START_OF_IMAGE and (end := data.find(END_OF_IMAGE, start)) > 0:
        stream = data[start:]
        # The stream may be a complete JPEG that contains the strips.
        if data.find(START_OF_SCAN, start, end) > 0 or stream.find(START_OF_SCAN) > 0:
            return stream
    if TILE_WIDTH in page.entries:
        raise unsupported_tiff("tiles of old-style JPEG")
    table_offsets = [page.numbers(tag) for tag in (QUANTIZATION, DC_TABLES, AC_TABLES)]
    if min(map(len, table_offsets)) < page.samples:
        raise broken_tiff("the tables of an old-style JPEG are missing")
    across, down = (page.numbers(YCBCR_SUBSAMPLING) or [2, 2])[:2] if page.samples > 1 else (1, 1)
    parts = [START_OF_IMAGE]
    for n in range(page.samples):
        at = table_offsets[0][n]
        parts.append(build_segment(DQT, bytes([n]) + data[at : at + 64]))
        for table_class in (0, 1):
            at = table_offsets[1 + table_class][n]
            table = data[at : at + 16 + sum(data[at : at + 16])]
            parts.append(build_segment(DHT, bytes([table_class << 4 | n]) + table))
    width, height = page.size
    sampling = [across << 4 | down] + [0x11] * (page.samples - 1)
    frame = struct.pack(">BHHB", 8, height, width, page.samples)
    components = b"".join(bytes((n, factors, n)) for n, factors in enumerate(sampling))
    parts.append(build_segment(BASELINE_FRAME, frame + components))
    rows = min(page.number(ROWS_PER_STRIP, height), height)
    strips = list(zip(page.numbers(STRIP_OFFSETS), page.numbers(STRIP_COUNTS), strict=False))
    interval = page.number(RESTART_INTERVAL, 0)
    if len(strips) > 1:
        # The decoder restarts at each strip.
        interval = -(-width // (8 * across)) * (rows // (8 * down))
    if interval:
        parts.append(build_segment(RESTART, struct.pack(">H", interval)))
    scan = b"".join(bytes((n, n << 4 | n)) for n in range(page.samples))
    parts.append(build_segment(SOS, bytes([page.samples]) + scan + b"\0\x3f\0"))
    for n, (offset, size) in enumerate(strips):
        restart_marker = bytes((0xFF, 0xD0 + (n - 1) % 8)) if n else b""
        parts.append(restart_marker + data[offset : offset + size].removesuffix(END_OF_IMAGE))
    return b"".join((*parts, END_OF_IMAGE))


def build_segment(marker: int, content: bytes) -> bytes:
    """Return a marker segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
