"""GIF: the first image, laid onto the canvas as browsers do; Pillow unpacks its samples.

Outside the first image nothing has been drawn yet. Pillow shows the first colour of the palette there;
browsers and we leave it transparent. A canvas smaller than the first image grows to hold the image.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.pillow import copy_text_and_resolution, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import row_strips

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B
GRAPHIC_CONTROL, APPLICATION = 0xF9, 0xFF
HAS_TABLE, INTERLACED = 0x80, 0x40
ICC_BLOCK = b"ICCRGBG1012"


@dataclass
class FirstImage:
    """What a file says up to its first image."""

    canvas: tuple[int, int]
    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    palette: np.ndarray
    """(256,3) uint8."""
    transparent: int | None
    code: slice
    """Where in the file the image's compressed samples are."""
    profile: bytes | None


def skip_blocks(data: bytes, at: int) -> int:
    """The place behind the data blocks that begin at `at`; the end of the file where they are cut."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return min(at + 1, len(data))


def blocks(data: bytes, at: int) -> bytes:
    """The content of the data blocks that begin at `at`."""
    parts = []
    while at < len(data) and data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += data[at] + 1
    return b"".join(parts)


def table(data: bytes, at: int, flags: int) -> tuple[np.ndarray | None, int]:
    """(colour table (256,3), the place behind it); browsers show colours that a table lacks as black."""
    if not flags & HAS_TABLE:
        return None, at
    count = 2 << (flags & 7)
    colours = np.zeros((256, 3), np.uint8)
    colours[:count] = np.frombuffer(data, np.uint8, 3 * count, at).reshape(count, 3)
    return colours, at + 3 * count


def first_image(data: bytes) -> FirstImage:
    """What a file says up to its first image.

    Raises: ImageError where there is none.
    """
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    colours, at = table(data, 13, flags)
    transparent, profile = None, None
    while at < len(data) and data[at] != TRAILER:
        kind = data[at]
        if kind == EXTENSION and at + 2 < len(data):
            label, content = data[at + 1], data[at + 3 : at + 3 + data[at + 2]]
            if label == GRAPHIC_CONTROL and len(content) >= 4:
                transparent = content[3] if content[0] & 1 else None
            elif label == APPLICATION and content == ICC_BLOCK:
                profile = blocks(data, at + 3 + len(content))
            at = skip_blocks(data, at + 2)
        elif kind == IMAGE:
            left, top, width, height, flags = struct.unpack_from("<4HB", data, at + 1)
            if not width or not height:
                raise ImageError("BrokenImage", f"the first image of a GIF has {width}×{height} pixels")
            own, at = table(data, at + 10, flags)
            palette = own if own is not None else colours
            if palette is None:
                palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
            canvas = max(screen_width, left + width), max(screen_height, top + height)
            code = slice(at, skip_blocks(data, at + 1))
            interlaced = bool(flags & INTERLACED)
            return FirstImage(canvas, left, top, width, height, interlaced, palette, transparent, code, profile)
        else:
            # Some writers leave zeros between blocks.
            at += 1
    raise ImageError("BrokenImage", "a GIF without an image")


def count_images(data: bytes, at: int) -> int:
    """How many images begin from the place `at` on, which is that of a block."""
    count = 0
    while at + 10 < len(data) and data[at] != TRAILER:
        if data[at] == EXTENSION:
            at = skip_blocks(data, at + 2)
        elif data[at] == IMAGE:
            count += 1
            flags = data[at + 9]
            at = skip_blocks(data, at + 11 + (3 * (2 << (flags & 7)) if flags & HAS_TABLE else 0))
        else:
            at += 1
    return count


def read_gif_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) of the canvas. Raises: ImageError for a file without an image."""
    return first_image(stream.getvalue()).canvas


def read_gif(stream: io.BytesIO) -> StoredImage:
    """The first image on its canvas.

    Raises: ImageError.
    """
    data = stream.getvalue()
    first = first_image(data)
    frames = 1 + count_images(data, first.code.stop)
    # A file of the samples alone, as large as they are and without a palette: Pillow gives them as gray.
    size = struct.pack("<HH", first.width, first.height)
    descriptor = b"," + bytes(4) + size + bytes([INTERLACED * first.interlaced])
    alone = b"".join((b"GIF89a", size, bytes(3), descriptor, data[first.code], b";"))
    with open_with_pillow(io.BytesIO(alone), "GIF") as image:
        image.load()
        indices = np.asarray(image)
    del data, alone
    width, height = first.canvas
    covers = (first.width, first.height) == first.canvas
    has_alpha = not covers or (first.transparent is not None and bool((indices == first.transparent).any()))
    gray = bool((first.palette == first.palette[:, :1]).all())
    colours = first.palette[:, :1] if gray else first.palette
    if has_alpha:
        colours = np.hstack([colours, np.full((256, 1), 255, np.uint8)])
        if first.transparent is not None:
            colours[first.transparent, 3] = 0
    pixels = np.zeros((height, width, colours.shape[1]), np.uint8)
    place = pixels[first.top : first.top + first.height, first.left : first.left + first.width]
    for rows in row_strips(first.width, first.height):
        place[rows] = colours[indices[rows]]
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    opened = StoredImage(pixels, "GIF", "L" if gray else "RGB", has_alpha, 8, frames, profile=first.profile)
    copy_text_and_resolution(opened, stream)
    return opened
