"""TIFF: every kind of samples that has a meaning as a picture, each segment checked to be whole.

Pillow misreads or refuses many of them, and gives what it has of a file that is cut off.
"""

import io
from collections.abc import Iterator

import numpy as np

from imagemill.pipeline.images.errors import DECODER_ERRORS
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.readers.tiff_colours import Colours, colours_of
from imagemill.pipeline.images.readers.tiff_old_jpeg import jpeg_stream
from imagemill.pipeline.images.readers.tiff_page import (
    ICC_PROFILE,
    IMAGE_DEPTH,
    OLD_JPEG,
    ORIENTATION,
    XMP,
    Page,
    broken,
    picture_page,
    unsupported,
)
from imagemill.pipeline.images.readers.tiff_segments import check_compression, segment_rows
from imagemill.pipeline.images.samples import row_strips


def read_tiff_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) of the page that is the picture."""
    return picture_of(stream.getvalue())[0].size


def read_tiff(stream: io.BytesIO) -> StoredImage:
    """The first page that is a picture.

    Raises: ImageError with the class UnsupportedFormat or UnsupportedMode, which names the property that no reader here
        supports, or BrokenImage.
    """
    data = stream.getvalue()
    page, frames = picture_of(data)
    if page.number(IMAGE_DEPTH, 1) > 1:
        raise unsupported(f"a volume of {page.number(IMAGE_DEPTH, 1)} slices")
    colours = colours_of(page)
    check_compression(page)
    pixels, alpha = decoded(data, page, colours)
    orientation = page.number(ORIENTATION, 1)
    return StoredImage(
        pixels=pixels,
        format="TIFF",
        mode=colours.mode,
        has_alpha=alpha is not None,
        bit_depth=colours.bit_depth,
        frames=frames,
        orientation=orientation if orientation in range(1, 9) else 1,
        profile=page.large(data, ICC_PROFILE) if colours.keeps_profile else None,
        exif=data,
        xmp=page.large(data, XMP),
        alpha=alpha,
    )


def picture_of(data: bytes) -> tuple[Page, int]:
    """The page that is the picture, and how many pages are. Raises: ImageError."""
    try:
        return picture_page(data)
    except DECODER_ERRORS as e:
        raise broken(f"a damaged directory ({e})") from None


def decoded(data: bytes, page: Page, colours: Colours) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (H,W), (H,W,3) or (H,W,4) and alpha (H,W), all uint8."""
    width, height = page.size
    columns = page.segment_size[0]
    depth = {"L": (), "RGB": (3,), "CMYK": (4,)}[colours.mode]
    pixels = np.empty((height, width, *depth), np.uint8)
    alpha = None if colours.alpha is None else np.empty((height, width), np.uint8)
    for top, left, stored in stored_segments(data, page):
        visible = min(page.segment_size[1], height - top)
        across = min(columns, width - left)
        try:
            planes = [segment_rows(page, segment, visible) for segment in stored]
        except DECODER_ERRORS as e:
            raise broken(f"the strip or tile at row {top}, column {left} is damaged ({e})") from None
        for rows in row_strips(columns, visible):
            samples = [plane(rows)[:, :across] for plane in planes]
            part, veil = colours.of(samples[0] if len(samples) == 1 else np.concatenate(samples, -1))
            target = slice(top + rows.start, top + rows.stop), slice(left, left + across)
            pixels[target] = part
            if alpha is not None and veil is not None:
                alpha[target] = veil
    return pixels, alpha


def stored_segments(data: bytes, page: Page) -> Iterator[tuple[int, int, list[memoryview]]]:
    """(top, left, what the file has of each plane) of each strip or tile."""
    if page.compression == OLD_JPEG:
        yield 0, 0, [memoryview(jpeg_stream(data, page))]
        return
    for top, left, places in page.segments():
        yield top, left, [memoryview(data)[at : at + count] for at, count in places]
