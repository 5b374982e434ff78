"""Find the page of a TIFF that is the image, and read how its directory describes pixels.

Sources: TIFF 6.0, BigTIFF.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from imagemill.pipeline.images.errors import ImageError, broken_image, unsupported_format
from imagemill.pipeline.images.tiff_directory import Entries, read_directory, read_tiff_header

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 266, 273, 274, 277, 278, 279
PLANAR, T4_OPTIONS, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT = 284, 292, 317, 320, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 324, 325, 330, 332, 338, 339
JPEG_TABLES, JPEG_OFFSET, JPEG_LENGTH, OLD_JPEG_TABLES = 347, 513, 514, (515, 519, 520, 521)
YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE_BLACK_WHITE, XMP = 529, 530, 532, 700
IMAGE_DEPTH, ICC_PROFILE, DNG_VERSION, LERC_PARAMETERS = 32997, 34675, 50706, 50674
LAYOUT_TAGS = (
    *(SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, ORIENTATION),
    *(SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR, T4_OPTIONS, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT),
    *(TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, JPEG_OFFSET),
    *(JPEG_LENGTH, *OLD_JPEG_TABLES, YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE_BLACK_WHITE, IMAGE_DEPTH, DNG_VERSION),
    LERC_PARAMETERS,
)
"""Tags that describe how the pixels are stored."""
REDUCED, MASK = 1, 4
"""Bits of the subfile type for pages that are not separate images."""
OLD_JPEG = 6
RGB, YCBCR = 2, 6
RAW_PHOTOMETRICS = (32803, 34892)
"""Data of a camera sensor: a colour filter array, and linear raw."""
MAX_PAGES = 200_000
MAX_TRIED_PAGES = 32
"""How many pages are searched for an image."""
MAX_SEGMENTS = 200_000
MAX_LAYOUT_BYTES = 8_000_000
MAX_TILE_PIXELS = 1 << 22
"""A tile may be larger than a small image, but a file of a few bytes must not allocate any amount of memory."""
MAX_METADATA_BYTES = 32_000_000
INTEGERS = {1: "u1", 3: "<u2", 4: "<u4", 6: "i1", 7: "u1", 8: "<i2", 9: "<i4", 13: "<u4", 16: "<u8", 17: "<i8", 18: "<u8"}
"""NumPy dtypes of the TIFF types that hold integers."""
RATIONAL, FLOAT, DOUBLE = 5, 11, 12


def unsupported_tiff(feature: str) -> ImageError:
    """Return the error of a TIFF with a feature that is not supported."""
    return unsupported_format(f"TIFF with {feature}")


def broken_tiff(problem: str) -> ImageError:
    """Return the error of a damaged TIFF."""
    return broken_image(f"TIFF: {problem}")


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF."""

    start: int
    """Offset of the directory."""
    order: str
    """Byte order of the file, "<" or ">"."""
    is_big: bool
    """Whether the file is a BigTIFF."""
    entries: Entries

    def numbers(self, tag: int) -> list[int]:
        """Return the integers of a tag; an empty list if the tag is missing or has another type."""
        value_type, _, value = self.entries.get(tag, (0, 0, b""))
        return np.frombuffer(value, INTEGERS[value_type]).tolist() if value_type in INTEGERS else []

    def number(self, tag: int, default: int) -> int:
        """Return the first integer of a tag."""
        return (self.numbers(tag) or [default])[0]

    def ratios(self, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
        """Return the numbers of a tag that may be fractions, as many as `default` has."""
        value_type, _, value = self.entries.get(tag, (0, 0, b""))
        if value_type == RATIONAL:
            numerators, denominators = np.frombuffer(value, "<u4").reshape(-1, 2).T
            ratios = numerators / np.maximum(denominators, 1)
        elif value_type in (FLOAT, DOUBLE):
            ratios = np.frombuffer(value, "<f4" if value_type == FLOAT else "<f8")
        else:
            ratios = np.array(self.numbers(tag), float)
        is_complete = len(ratios) >= len(default) and np.isfinite(ratios).all()
        return tuple(ratios[: len(default)].tolist()) if is_complete else default

    def large_value(self, data: bytes, tag: int) -> bytes | None:
        """Read a tag outside LAYOUT_TAGS; None if it is missing or exceeds MAX_METADATA_BYTES."""
        try:
            entry = read_directory(data, self.start, self.order, (tag,), MAX_METADATA_BYTES, self.is_big).get(tag)
        except ValueError:
            return None
        return entry[2] if entry else None

    def raw_value(self, tag: int) -> bytes | None:
        """Return the bytes of a tag."""
        return self.entries[tag][2] if tag in self.entries else None

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height); (0, 0) for a page without an image."""
        width, height = self.number(WIDTH, 0), self.number(HEIGHT, 0)
        return (width, height) if width > 0 and height > 0 else (0, 0)

    @cached_property
    def is_image(self) -> bool:
        """Whether the page is neither a reduced version nor a mask of another page."""
        subfile_type = self.number(SUBFILE, REDUCED if self.number(OLD_SUBFILE, 1) == 2 else 0)
        return not subfile_type & (REDUCED | MASK) and self.size != (0, 0)

    @cached_property
    def is_raw(self) -> bool:
        """Whether the page holds sensor data of a camera."""
        return self.photometric in RAW_PHOTOMETRICS or DNG_VERSION in self.entries

    @cached_property
    def samples(self) -> int:
        """Samples per pixel."""
        return self.number(SAMPLES, 3 if self.compression == OLD_JPEG else 1)

    @cached_property
    def is_planar(self) -> bool:
        """Whether each sample has separate segments."""
        return self.number(PLANAR, 1) == 2 and self.samples > 1

    @cached_property
    def bits(self) -> int:
        """Bits per sample.

        Raises:
            ImageError: with the class UnsupportedFormat, if samples of a pixel differ in bits.
        """
        bits = set(self.numbers(BITS)[: self.samples]) or {8 if self.compression == OLD_JPEG else 1}
        if len(bits) > 1:
            raise unsupported_tiff(f"samples of {', '.join(map(str, sorted(bits)))} bits in one pixel")
        return bits.pop()

    @cached_property
    def compression(self) -> int:
        """The TIFF number of the compression; 1 for none."""
        return self.number(COMPRESSION, 1)

    @cached_property
    def photometric(self) -> int | None:
        """The photometric interpretation; None if the tag is missing."""
        numbers = self.numbers(PHOTOMETRIC)
        if self.compression == OLD_JPEG and self.samples == 3 and (not numbers or numbers[0] == RGB):
            # Old programs omit the tag, or name the colours of the decoded samples.
            return YCBCR
        return numbers[0] if numbers else None

    @cached_property
    def predictor(self) -> int:
        """1 for none, 2 for differences of neighbouring samples."""
        return self.number(PREDICTOR, 1)

    @cached_property
    def is_bit_reversed(self) -> bool:
        """Whether the lowest bit of a byte comes first."""
        return self.number(FILL_ORDER, 1) == 2

    @cached_property
    def segment_size(self) -> tuple[int, int]:
        """(columns, rows) of a tile or strip.

        Raises:
            ImageError: with the class BrokenImage, if the size is invalid.
        """
        width, height = self.size
        if self.compression == OLD_JPEG:
            # All strips form one JPEG stream.
            return width, height
        if TILE_WIDTH not in self.entries:
            rows = self.number(ROWS_PER_STRIP, height)
            if rows <= 0:
                raise broken_tiff(f"the number of rows per strip is {rows}")
            return width, min(rows, height)
        columns, rows = self.number(TILE_WIDTH, 0), self.number(TILE_HEIGHT, 0)
        if columns <= 0 or rows <= 0 or columns * rows > max(MAX_TILE_PIXELS, 4 * width * height):
            raise broken_tiff(f"the tiles have {columns}×{rows} pixels in an image of {width}×{height} pixels")
        return columns, rows

    @property
    def end(self) -> int:
        """The offset after the last strip or tile; 0 if the page has none."""
        tags = ((STRIP_OFFSETS, STRIP_COUNTS), (TILE_OFFSETS, TILE_COUNTS))
        locations = chain.from_iterable(zip(*map(self.numbers, pair), strict=False) for pair in tags)
        return max((offset + size for offset, size in locations), default=0)

    def segments(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Yield (top, left, [(offset, size)]) of each segment, with one location per plane.

        Raises:
            ImageError: with the class BrokenImage or UnsupportedFormat, if segments are missing, or if there are too many.
        """
        (width, height), (columns, rows) = self.size, self.segment_size
        is_tiled = TILE_WIDTH in self.entries
        offsets = self.numbers(TILE_OFFSETS if is_tiled else STRIP_OFFSETS) or self.numbers(STRIP_OFFSETS)
        sizes = self.numbers(TILE_COUNTS if is_tiled else STRIP_COUNTS) or self.numbers(STRIP_COUNTS)
        across, down = -(-width // columns), -(-height // rows)
        total = across * down * (self.samples if self.is_planar else 1)
        if len(offsets) == 1 and not any(sizes):
            # Some programs omit the size of a single strip.
            sizes = [1 << 62]
        if total > MAX_SEGMENTS:
            raise unsupported_tiff(f"{total:,} strips or tiles")
        if min(len(offsets), len(sizes)) < total:
            raise broken_tiff(f"only {min(len(offsets), len(sizes))} of {total} strips or tiles exist")
        if not all(sizes):
            raise unsupported_tiff("omitted strips or tiles (sparse)")
        locations = list(zip(offsets, sizes, strict=False))
        for n in range(across * down):
            yield n // across * rows, n % across * columns, locations[n : total : across * down]


def find_image_page(data: bytes) -> tuple[Page, int]:
    """Find the first page that is an image, and count such pages.

    A thumbnail, a pyramid level or a mask only counts if there is nothing else. If all pages of the main chain are
    reduced, the image is a sub-page of the first of them.

    Raises:
        ImageError: with the class BrokenImage for a file without an image.
        struct.error: for a damaged file.
        ValueError: for a damaged file.
    """
    order, is_big, at = read_tiff_header(data)
    starts = list(iterate_directories(data, order, is_big, at))
    if not starts:
        raise broken_tiff("the file has no page")
    first, *sub_pages = read_pages_at(data, starts[0], order, is_big)
    full_starts = [start for start in starts if not is_reduced(data, start, order, is_big)]
    candidates = (read_page_at(data, start, order, is_big) for start in full_starts[:MAX_TRIED_PAGES])
    image_page = next((page for page in chain(candidates, sub_pages) if page.is_image), first)
    if image_page.size == (0, 0):
        raise broken_tiff("the file has no page with an image")
    return image_page, max(len(full_starts), 1)


def is_camera_raw(data: bytes) -> bool:
    """Return whether a TIFF holds sensor data of a camera."""
    return data[8:10] == b"CR" or bool(find_raw_pages(data))


def find_raw_pages(data: bytes) -> list[Page]:
    """Return the first page of a TIFF and its sub-pages if they hold sensor data; none if the file is damaged."""
    try:
        order, is_big, at = read_tiff_header(data)
        start = next(iterate_directories(data, order, is_big, at), None)
        return [] if start is None else [page for page in read_pages_at(data, start, order, is_big) if page.is_raw]
    except (struct.error, ValueError):
        return []


def read_pages_at(data: bytes, start: int, order: str, is_big: bool) -> list[Page]:
    """Read the page whose directory begins at `start`, and its sub-pages.

    Raises:
        struct.error: as `read_directory`.
        ValueError: as `read_directory`.
    """
    first = read_page_at(data, start, order, is_big)
    sub_starts = [start for start in first.numbers(SUB_IFDS)[:MAX_TRIED_PAGES] if 0 < start < len(data)]
    return [first, *(read_page_at(data, start, order, is_big) for start in sub_starts)]


def read_page_at(data: bytes, start: int, order: str, is_big: bool) -> Page:
    """Read the page whose directory begins at `start`.

    Raises:
        struct.error: as `read_directory`.
        ValueError: as `read_directory`.
    """
    return Page(start, order, is_big, read_directory(data, start, order, LAYOUT_TAGS, MAX_LAYOUT_BYTES, is_big))


def iterate_directories(data: bytes, order: str, is_big: bool, at: int) -> Iterator[int]:
    """Yield the offsets of the directories of the main chain.

    A chain that leaves the file or forms a cycle ends there.

    Args:
        data: the file.
        order: byte order of the file.
        is_big: whether the file is a BigTIFF.
        at: position of the offset of the first directory.
    """
    count_format, offset_format, entry_bytes = (f"{order}Q", f"{order}Q", 20) if is_big else (f"{order}H", f"{order}I", 12)
    starts: set[int] = set()
    while len(starts) < MAX_PAGES and at + struct.calcsize(offset_format) <= len(data):
        (start,) = struct.unpack_from(offset_format, data, at)
        if start in starts or not 0 < start <= len(data) - struct.calcsize(count_format):
            return
        yield start
        starts.add(start)
        (count,) = struct.unpack_from(count_format, data, start)
        at = start + struct.calcsize(count_format) + count * entry_bytes


def is_reduced(data: bytes, start: int, order: str, is_big: bool) -> bool:
    """Return whether a page is a reduced version or a mask.

    Reads only the first tag, because the tags are sorted and the subfile type comes first.
    """
    count_bytes, entry_format = (8, f"{order}HHQ") if is_big else (2, f"{order}HHI")
    if start + count_bytes + 20 > len(data):
        return False
    tag, value_type, _ = struct.unpack_from(entry_format, data, start + count_bytes)
    if tag not in (SUBFILE, OLD_SUBFILE) or value_type not in (3, 4):
        return False
    value_at = start + count_bytes + struct.calcsize(entry_format)
    (value,) = struct.unpack_from(f"{order}{'H' if value_type == 3 else 'I'}", data, value_at)
    return bool(value & (REDUCED | MASK)) if tag == SUBFILE else value == 2
