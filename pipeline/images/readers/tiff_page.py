"""Which page of a TIFF is the picture, and what its directory says of the pixels (TIFF 6.0, BigTIFF)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.tiff_directory import Entries, entries_at, tiff_head

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 266, 273, 274, 277, 278, 279
PLANAR, T4_OPTIONS, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT = 284, 292, 317, 320, 322, 323
TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 324, 325, 330, 332, 338, 339
JPEG_TABLES, JPEG_OFFSET, JPEG_LENGTH, OLD_JPEG_TABLES = 347, 513, 514, (515, 519, 520, 521)
YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE_BLACK_WHITE, XMP = 529, 530, 532, 700
IMAGE_DEPTH, ICC_PROFILE, DNG_VERSION, LERC_PARAMETERS = 32997, 34675, 50706, 50674
LAYOUT = (
    *(SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, ORIENTATION),
    *(SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR, T4_OPTIONS, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT),
    *(TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, JPEG_OFFSET),
    *(JPEG_LENGTH, *OLD_JPEG_TABLES, YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE_BLACK_WHITE, IMAGE_DEPTH, DNG_VERSION),
    LERC_PARAMETERS,
)
"""The tags that say how the pixels are stored."""
REDUCED, MASK = 1, 4
"""Bits of the subfile type: pages that are not pictures of their own."""
OLD_JPEG = 6
RGB, YCBCR = 2, 6
RAW_PHOTOMETRICS = (32803, 34892)
"""Of the sensor: a colour filter array, and linear raw."""
MAX_PAGES = 200_000
MAX_TRIED = 32
"""Pages that are looked at for a picture."""
MAX_SEGMENTS = 200_000
MAX_LAYOUT_BYTES = 8_000_000
# A tile may be larger than a small picture, but not by much: a file of a few bytes could ask for any amount of memory.
MAX_TILE_PIXELS = 1 << 22
MAX_METADATA_BYTES = 32_000_000
INTEGERS = {1: "u1", 3: "<u2", 4: "<u4", 6: "i1", 7: "u1", 8: "<i2", 9: "<i4", 13: "<u4", 16: "<u8", 17: "<i8", 18: "<u8"}
"""The types of TIFF tags that hold integers, as NumPy reads their values."""
RATIONAL, FLOAT, DOUBLE = 5, 11, 12


def unsupported(what: str) -> ImageError:
    """A TIFF with a property that no reader here supports."""
    return ImageError("UnsupportedFormat", f"TIFF with {what} is not supported; convert it")


def broken(what: str) -> ImageError:
    """A damaged TIFF."""
    return ImageError("BrokenImage", f"TIFF: {what}")


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF."""

    start: int
    """Where the directory begins."""
    order: str
    """The byte order of the file, "<" or ">"."""
    big: bool
    """Whether the file is a BigTIFF."""
    entries: Entries

    def numbers(self, tag: int) -> list[int]:
        """The integers of a tag; none where there is none, or it holds something else."""
        kind, _, value = self.entries.get(tag, (0, 0, b""))
        return np.frombuffer(value, INTEGERS[kind]).tolist() if kind in INTEGERS else []

    def number(self, tag: int, default: int) -> int:
        """The first integer of a tag."""
        return (self.numbers(tag) or [default])[0]

    def ratios(self, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
        """The numbers of a tag that may be fractions, as many as in `default`."""
        kind, _, value = self.entries.get(tag, (0, 0, b""))
        if kind == RATIONAL:
            above, below = np.frombuffer(value, "<u4").reshape(-1, 2).T
            ratios = above / np.maximum(below, 1)
        elif kind in (FLOAT, DOUBLE):
            ratios = np.frombuffer(value, "<f4" if kind == FLOAT else "<f8")
        else:
            ratios = np.array(self.numbers(tag), float)
        is_whole = len(ratios) >= len(default) and np.isfinite(ratios).all()
        return tuple(ratios[: len(default)].tolist()) if is_whole else default

    def large(self, data: bytes, tag: int) -> bytes | None:
        """The value of a tag that is not in `entries`; None where there is none, or it is larger than metadata are."""
        try:
            entry = entries_at(data, self.start, self.order, (tag,), MAX_METADATA_BYTES, self.big).get(tag)
        except ValueError:
            return None
        return entry[2] if entry else None

    def bytes_of(self, tag: int) -> bytes | None:
        """The value of a tag as it is."""
        return self.entries[tag][2] if tag in self.entries else None

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height); (0, 0) of a page without a picture."""
        width, height = self.number(WIDTH, 0), self.number(HEIGHT, 0)
        return (width, height) if width > 0 and height > 0 else (0, 0)

    @cached_property
    def is_picture(self) -> bool:
        """Whether it is neither a reduced version nor a mask of another page."""
        kind = self.number(SUBFILE, REDUCED if self.number(OLD_SUBFILE, 1) == 2 else 0)
        return not kind & (REDUCED | MASK) and self.size != (0, 0)

    @cached_property
    def is_raw(self) -> bool:
        """Whether it holds what the sensor of a camera saw."""
        return self.photometric in RAW_PHOTOMETRICS or DNG_VERSION in self.entries

    @cached_property
    def samples(self) -> int:
        """Samples of a pixel."""
        return self.number(SAMPLES, 3 if self.compression == OLD_JPEG else 1)

    @cached_property
    def is_planar(self) -> bool:
        """Whether each sample has segments of its own."""
        return self.number(PLANAR, 1) == 2 and self.samples > 1

    @cached_property
    def bits(self) -> int:
        """Bits of a sample. Raises: ImageError where they differ."""
        bits = set(self.numbers(BITS)[: self.samples]) or {8 if self.compression == OLD_JPEG else 1}
        if len(bits) > 1:
            raise unsupported(f"samples of {', '.join(map(str, sorted(bits)))} bits in one pixel")
        return bits.pop()

    @cached_property
    def compression(self) -> int:
        """The number of the compression, 1 for none."""
        return self.number(COMPRESSION, 1)

    @cached_property
    def photometric(self) -> int | None:
        """What the samples are; None where the file does not say."""
        numbers = self.numbers(PHOTOMETRIC)
        if self.compression == OLD_JPEG and self.samples == 3 and (not numbers or numbers[0] == RGB):
            # Old programs leave it out, or name what becomes of the samples.
            return YCBCR
        return numbers[0] if numbers else None

    @cached_property
    def predictor(self) -> int:
        """1 for none, 2 for differences of neighbours."""
        return self.number(PREDICTOR, 1)

    @cached_property
    def is_turned(self) -> bool:
        """Whether the lowest bit of a byte comes first."""
        return self.number(FILL_ORDER, 1) == 2

    @cached_property
    def segment_size(self) -> tuple[int, int]:
        """(columns, rows) of a tile or strip. Raises: ImageError for what cannot be."""
        width, height = self.size
        if self.compression == OLD_JPEG:
            # Its strips are one stream.
            return width, height
        if TILE_WIDTH not in self.entries:
            rows = self.number(ROWS_PER_STRIP, height)
            if rows <= 0:
                raise broken(f"strips of {rows} rows")
            return width, min(rows, height)
        columns, rows = self.number(TILE_WIDTH, 0), self.number(TILE_HEIGHT, 0)
        if columns <= 0 or rows <= 0 or columns * rows > max(MAX_TILE_PIXELS, 4 * width * height):
            raise broken(f"tiles of {columns}×{rows}")
        return columns, rows

    def segments(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """(top, left, [(offset, bytes)]) of each segment, with one place in the file for each plane.

        Raises: ImageError when there are fewer than the picture has.
        """
        (width, height), (columns, rows) = self.size, self.segment_size
        tiled = TILE_WIDTH in self.entries
        offsets = self.numbers(TILE_OFFSETS if tiled else STRIP_OFFSETS) or self.numbers(STRIP_OFFSETS)
        counts = self.numbers(TILE_COUNTS if tiled else STRIP_COUNTS) or self.numbers(STRIP_COUNTS)
        across, down = -(-width // columns), -(-height // rows)
        planes = self.samples if self.is_planar else 1
        if len(offsets) == 1 and not any(counts):
            # Some programs leave the size of a single strip out.
            counts = [1 << 62]
        if across * down * planes > MAX_SEGMENTS:
            raise unsupported(f"{across * down * planes:,} strips or tiles")
        if min(len(offsets), len(counts)) < across * down * planes:
            raise broken(f"{min(len(offsets), len(counts))} of {across * down * planes} strips or tiles")
        if not all(counts):
            raise unsupported("strips or tiles left out (sparse)")
        places = list(zip(offsets, counts, strict=False))
        for n in range(across * down):
            yield n // across * rows, n % across * columns, places[n : across * down * planes : across * down]


def picture_page(data: bytes) -> tuple[Page, int]:
    """The first page that is a picture, and how many of them the file has.

    A page that is a thumbnail, a level of a pyramid or a mask is none, unless there is nothing else. Where the pages are all
    reduced, the picture is below the first of them.

    Raises: ImageError for a camera's raw file, or a file without a picture; struct.error and ValueError for a broken one.
    """
    order, big, at = tiff_head(data)
    starts = list(directories(data, order, big, at))
    if not starts:
        raise broken("no page")
    first = page_at(data, starts[0], order, big)
    below = [page_at(data, start, order, big) for start in first.numbers(SUB_IFDS)[:MAX_TRIED] if 0 < start < len(data)]
    if first.is_raw or any(page.is_raw for page in below) or data[8:10] == b"CR":
        raise ImageError("UnsupportedFormat", "a camera's raw file (DNG, CR2, NEF, …) is not supported; convert it")
    whole = [start for start in starts if not is_reduced(data, start, order, big)]
    tried = (page_at(data, start, order, big) for start in whole[:MAX_TRIED])
    picture = next((page for page in chain(tried, below) if page.is_picture), first)
    if picture.size == (0, 0):
        raise broken("no page with a picture")
    return picture, max(len(whole), 1)


def page_at(data: bytes, start: int, order: str, big: bool) -> Page:
    """The page whose directory begins at `start`. Raises: struct.error, ValueError."""
    return Page(start, order, big, entries_at(data, start, order, LAYOUT, MAX_LAYOUT_BYTES, big))


def directories(data: bytes, order: str, big: bool, at: int) -> Iterator[int]:
    """Where the directories of the main chain begin; `at` is where the offset of the first stands.

    A chain that leaves the file or returns to a page ends there.
    """
    counts, offsets, entry = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}H", f"{order}I", 12)
    starts: set[int] = set()
    while len(starts) < MAX_PAGES and at + struct.calcsize(offsets) <= len(data):
        (start,) = struct.unpack_from(offsets, data, at)
        if start in starts or not 0 < start <= len(data) - struct.calcsize(counts):
            return
        yield start
        starts.add(start)
        (count,) = struct.unpack_from(counts, data, start)
        at = start + struct.calcsize(counts) + count * entry


def is_reduced(data: bytes, start: int, order: str, big: bool) -> bool:
    """Whether a page further on is a reduced version or a mask: only its first tag is read, which is where that stands."""
    head, entry = (8, f"{order}HHQ") if big else (2, f"{order}HHI")
    if start + head + 20 > len(data):
        return False
    tag, kind, _ = struct.unpack_from(entry, data, start + head)
    if tag not in (SUBFILE, OLD_SUBFILE) or kind not in (3, 4):
        return False
    (value,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, start + head + struct.calcsize(entry))
    return bool(value & (REDUCED | MASK)) if tag == SUBFILE else value == 2
