"""TIFF: all kinds of samples that form an image; every strip and tile must be complete.

Pillow misreads or refuses many kinds, and returns what is left of a truncated file without an error.
"""

import io
from collections.abc import Iterator

import numpy as np

from imagemill.pipeline.images.errors import DECODER_ERRORS
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.readers.tiff_colours import Colours, choose_colours
from imagemill.pipeline.images.readers.tiff_old_jpeg import build_jpeg
from imagemill.pipeline.images.readers.tiff_page import (
    ICC_PROFILE,
    IMAGE_DEPTH,
    OLD_JPEG,
    ORIENTATION,
    XMP,
    Page,
    broken_tiff,
    find_image_page,
    unsupported_tiff,
)
from imagemill.pipeline.images.readers.tiff_segments import check_compression, open_segment
from imagemill.pipeline.images.samples import row_strips


def read_tiff_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) of the first page that is an image."""
    page, _ = read_page(stream.getvalue())
    return page.size


def read_tiff(stream: io.BytesIO) -> StoredImage:
    """Decode the first page that is an image.

    Raises:
        ImageError: with the class BrokenImage; or UnsupportedFormat or UnsupportedMode, which name the property that is not
            supported.
    """
    data = stream.getvalue()
    page, frames = read_page(data)
    if page.number(IMAGE_DEPTH, 1) > 1:
        raise unsupported_tiff(f"a volume of {page.number(IMAGE_DEPTH, 1)} slices")
    colours = choose_colours(page)
    check_compression(page)
    pixels, alpha = decode_page(data, page, colours)
    orientation = page.number(ORIENTATION, 1)
    return StoredImage(
        pixels=pixels,
        format="TIFF",
        mode=colours.mode,
        has_alpha=alpha is not None,
        bit_depth=colours.bit_depth,
        frames=frames,
        orientation=orientation if orientation in range(1, 9) else 1,
        profile=page.large_value(data, ICC_PROFILE) if colours.keeps_profile else None,
        exif=data,
        xmp=page.large_value(data, XMP),
        alpha=alpha,
    )


def read_page(data: bytes) -> tuple[Page, int]:
    """Read the first page that is an image, and the number of such pages.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    try:
        return find_image_page(data)
    except DECODER_ERRORS as e:
        raise broken_tiff(f"a directory is damaged ({e})") from None


def decode_page(data: bytes, page: Page, colours: Colours) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a page, segment by segment.

    Returns:
        Colours (H,W), (H,W,3) or (H,W,4), and alpha (H,W) or None, all uint8.
    """
    width, height = page.size
    columns, rows_per_segment = page.segment_size
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[colours.mode]
    pixels = np.empty((height, width, *channels), np.uint8)
    alpha = None if colours.alpha is None else np.empty((height, width), np.uint8)
    for top, left, planes in iterate_segments(data, page):
        visible_rows = min(rows_per_segment, height - top)
        visible_columns = min(columns, width - left)
        try:
            decoders = [open_segment(page, plane, visible_rows) for plane in planes]
        except DECODER_ERRORS as e:
            raise broken_tiff(f"the strip or tile at row {top}, column {left} is damaged ({e})") from None
        for rows in row_strips(columns, visible_rows):
            samples = [decode_rows(rows)[:, :visible_columns] for decode_rows in decoders]
            colour_strip, alpha_strip = colours.convert(samples[0] if len(samples) == 1 else np.concatenate(samples, -1))
            target = slice(top + rows.start, top + rows.stop), slice(left, left + visible_columns)
            pixels[target] = colour_strip
            if alpha is not None and alpha_strip is not None:
                alpha[target] = alpha_strip
    return pixels, alpha


def iterate_segments(data: bytes, page: Page) -> Iterator[tuple[int, int, list[memoryview]]]:
    """Yield (top, left, stored bytes of each plane) of each strip or tile."""
    if page.compression == OLD_JPEG:
        yield 0, 0, [memoryview(build_jpeg(data, page))]
        return
    for top, left, locations in page.segments():
        yield top, left, [memoryview(data)[offset : offset + size] for offset, size in locations]
