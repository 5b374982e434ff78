"""GIF: the first image on its canvas, as browsers show it. Pillow decompresses the samples.

Pixels of the canvas outside the first image are transparent, as in browsers. Pillow fills them with the first palette
colour. A canvas that is smaller than the first image is enlarged.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.images.errors import broken_image, check_dimensions
from imagemill.pipeline.images.readers.pillow import copy_text_and_resolution, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import row_strips

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B
GRAPHIC_CONTROL, APPLICATION = 0xF9, 0xFF
HAS_TABLE, INTERLACED = 0x80, 0x40
ICC_APPLICATION = b"ICCRGBG1012"


@dataclass
class FirstImage:
    """The structure of a file up to and including its first image."""

    canvas: tuple[int, int]
    """(width, height)."""
    left: int
    top: int
    width: int
    height: int
    is_interlaced: bool
    palette: np.ndarray
    """(256,3) uint8."""
    transparent_index: int | None
    samples: slice
    """Where in the file the compressed samples are."""
    profile: bytes | None


def skip_blocks(data: bytes, at: int) -> int:
    """Return the offset after the data blocks at `at`; the end of the file if truncated."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return min(at + 1, len(data))


def read_blocks(data: bytes, at: int) -> bytes:
    """Return the content of the data blocks that begin at `at`."""
    parts = []
    while at < len(data) and data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += data[at] + 1
    return b"".join(parts)


def read_table(data: bytes, at: int, flags: int) -> tuple[np.ndarray | None, int]:
    """Read the colour table at `at`, if the flags say that there is one.

    Like browsers, show missing colours as black.

    Returns:
        The table (256,3) uint8 or None, and the offset after it.
    """
    if not flags & HAS_TABLE:
        return None, at
    count = 2 << (flags & 7)
    colours = np.zeros((256, 3), np.uint8)
    colours[:count] = np.frombuffer(data, np.uint8, 3 * count, at).reshape(count, 3)
    return colours, at + 3 * count


def parse_first_image(data: bytes) -> FirstImage:
    """Parse a file up to its first image.

    Raises:
        ImageError: with the class BrokenImage, if there is no image.
    """
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    global_palette, at = read_table(data, 13, flags)
    transparent_index, profile = None, None
    while at < len(data) and data[at] != TRAILER:
        block_type = data[at]
        if block_type == EXTENSION and at + 2 < len(data):
            label, content = data[at + 1], data[at + 3 : at + 3 + data[at + 2]]
            if label == GRAPHIC_CONTROL and len(content) >= 4:
                transparent_index = content[3] if content[0] & 1 else None
            elif label == APPLICATION and content == ICC_APPLICATION:
                profile = read_blocks(data, at + 3 + len(content))
            at = skip_blocks(data, at + 2)
        elif block_type == IMAGE:
            left, top, width, height, flags = struct.unpack_from("<4HB", data, at + 1)
            check_dimensions("GIF", width, height)
            local_palette, at = read_table(data, at + 10, flags)
            palette = local_palette if local_palette is not None else global_palette
            if palette is None:
                palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
            return FirstImage(
                canvas=(max(screen_width, left + width), max(screen_height, top + height)),
                left=left,
                top=top,
                width=width,
                height=height,
                is_interlaced=bool(flags & INTERLACED),
                palette=palette,
                transparent_index=transparent_index,
                samples=slice(at, skip_blocks(data, at + 1)),
                profile=profile,
            )
        else:
            # Some writers leave zero bytes between blocks.
            at += 1
    raise broken_image("GIF: the file has no image")


def count_images(data: bytes, at: int) -> int:
    """Count the images from the block at `at` on."""
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
    """Read (width, height) of the canvas."""
    return parse_first_image(stream.getvalue()).canvas


def read_gif(stream: io.BytesIO) -> StoredImage:
    """Decode the first image on its canvas.

    Raises:
        ImageError: with the class BrokenImage.
    """
    data = stream.getvalue()
    first = parse_first_image(data)
    frames = 1 + count_images(data, first.samples.stop)
    # Let Pillow decompress a file of the samples alone, without a palette: it returns the palette indices as gray.
    size = struct.pack("<HH", first.width, first.height)
    descriptor = b"," + bytes(4) + size + bytes([INTERLACED * first.is_interlaced])
    samples_file = b"".join((b"GIF89a", size, bytes(3), descriptor, data[first.samples], b";"))
    with open_with_pillow(io.BytesIO(samples_file), "GIF") as image:
        image.load()
        indices = np.asarray(image)
    del data, samples_file
    width, height = first.canvas
    covers_canvas = (first.width, first.height) == first.canvas
    has_transparent_pixels = first.transparent_index is not None and bool((indices == first.transparent_index).any())
    has_alpha = not covers_canvas or has_transparent_pixels
    is_gray = bool((first.palette == first.palette[:, :1]).all())
    colours = first.palette[:, :1] if is_gray else first.palette
    if has_alpha:
        colours = np.hstack([colours, np.full((256, 1), 255, np.uint8)])
        if first.transparent_index is not None:
            colours[first.transparent_index, -1] = 0
    pixels = np.zeros((height, width, colours.shape[1]), np.uint8)
    area = pixels[first.top : first.top + first.height, first.left : first.left + first.width]
    for rows in row_strips(first.width, first.height):
        area[rows] = colours[indices[rows]]
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    stored = StoredImage(pixels, "GIF", "L" if is_gray else "RGB", has_alpha, 8, frames, profile=first.profile)
    copy_text_and_resolution(stored, stream)
    return stored
