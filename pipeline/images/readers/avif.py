"""AVIF: libavif decodes through Pillow; properties that it leaves to its caller follow here.

These properties are the clean aperture (`clap`, a crop), rotations and mirrors in their order, and colour spaces
other than sRGB. An image of more than 8 bits whose colours are converted is decoded by imagecodecs, which returns all
bits. Boxes follow ISO/IEC 14496-12 and 23008-12.
"""

import io
import struct
from dataclasses import dataclass, field
from fractions import Fraction

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace, parse_cicp
from imagemill.pipeline.images.errors import broken_image, unsupported_format
from imagemill.pipeline.images.readers.boxes import Box, find_box, iterate_boxes
from imagemill.pipeline.images.readers.pillow import copy_metadata, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

SAMPLE_ENTRY_BYTES = 78
"""Bytes of the fields in a video track's sample entry, before its boxes."""
STORED = np.arange(6).reshape(2, 3)
"""A stored image of six distinct pixels, on which rotations and mirrors are tracked."""
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: np.rot90(STORED, -1),
    7: STORED[::-1, ::-1].T,
    8: np.rot90(STORED),
}
"""STORED made upright, by EXIF orientation."""


@dataclass
class Properties:
    """The properties that the boxes of a file give its image."""

    bits: int = 8
    is_gray: bool = False
    crop: tuple[int, int, int, int] | None = None
    """(left, top, right, bottom)."""
    orientation: int = 1
    profile: bytes | None = None
    colour_space: ColourSpace | None = None
    ignored_colours: str = ""
    is_sequence: bool = False
    transformed: np.ndarray = field(default_factory=lambda: STORED)
    """STORED after the rotations and mirrors that were read so far."""


def read_properties(data: bytes) -> Properties:
    """Read the properties of the image that a file shows first.

    Raises:
        ImageError: for an invalid clean aperture, or one that applies after a rotation.
    """
    properties = Properties()
    size = (0, 0)
    boxes: list[Box] = []
    if data[8:12] == b"avis" and (entry := find_track_entry(data)):
        properties.is_sequence = True
        boxes = list(iterate_boxes(data, entry[1] + SAMPLE_ENTRY_BYTES, entry[2]))
        size = struct.unpack_from(">HH", data, entry[1] + 24)
    elif meta := find_box(data, (b"meta",), 0, len(data)):
        boxes = find_item_properties(data, meta)
    for box_type, start, end in boxes:
        if box_type == b"ispe":
            size = struct.unpack_from(">II", data, start + 4)
        elif box_type == b"av1C":
            flags = data[start + 2]
            properties.bits = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
            properties.is_gray = bool(flags & 0x10)
        elif box_type == b"colr":
            read_colours(data, start, end, properties)
        elif box_type == b"clap":
            if not np.array_equal(properties.transformed, STORED):
                raise unsupported_format("AVIF with a crop (clap) after a rotation")
            properties.crop = parse_clean_aperture(struct.unpack_from(">8i", data, start), *size)
        elif box_type == b"irot":
            properties.transformed = np.rot90(properties.transformed, data[start] & 3)
        elif box_type == b"imir":
            is_horizontal = data[start] & 1
            properties.transformed = properties.transformed[:, ::-1] if is_horizontal else properties.transformed[::-1]
    properties.orientation = next(n for n, upright in UPRIGHT.items() if np.array_equal(upright, properties.transformed))
    return properties


def find_track_entry(data: bytes) -> Box | None:
    """Find the sample entry of the first image track."""
    movie = find_box(data, (b"moov",), 0, len(data))
    for box_type, start, end in iterate_boxes(data, *movie[1:]) if movie else ():
        handler = find_box(data, (b"mdia", b"hdlr"), start, end)
        table = find_box(data, (b"mdia", b"minf", b"stbl", b"stsd"), start, end)
        if box_type == b"trak" and handler and table and data[handler[1] + 8 : handler[1] + 12] == b"pict":
            return next(iterate_boxes(data, table[1] + 8, table[2]), None)
    return None


def find_item_properties(data: bytes, meta: Box) -> list[Box]:
    """Find the properties of the primary item in their order, then those only its tiles have."""
    _, start, end = meta
    primary = find_box(data, (b"pitm",), start + 4, end)
    container = find_box(data, (b"iprp", b"ipco"), start + 4, end)
    if not primary or not container:
        return []
    item = int.from_bytes(data[primary[1] + 4 : primary[2]], "big")
    all_properties = list(iterate_boxes(data, container[1], container[2]))
    item_properties: list[Box] = []
    properties_box = find_box(data, (b"iprp",), start + 4, end)
    for box_type, at, stop in iterate_boxes(data, *properties_box[1:]) if properties_box else ():
        if box_type == b"ipma":
            indices = read_associations(data, at, stop).get(item, [])
            item_properties += [all_properties[index - 1] for index in indices if 0 < index <= len(all_properties)]
    item_types = {box_type for box_type, _, _ in item_properties}
    # A grid item leaves properties that all of its tiles share to the tiles.
    for tile_type in (b"av1C", b"colr"):
        if tile_type not in item_types:
            item_properties += [box for box in all_properties if box[0] == tile_type][:1]
    return item_properties


def read_associations(data: bytes, start: int, end: int) -> dict[int, list[int]]:
    """Read the property indices of each item, from 1 on, out of a box `ipma`."""
    version, flags = data[start], int.from_bytes(data[start + 1 : start + 4], "big")
    (count,) = struct.unpack_from(">I", data, start + 4)
    at, associations = start + 8, {}
    index_bytes, id_bytes = (2 if flags & 1 else 1), (4 if version else 2)
    index_mask = 0x7FFF if index_bytes == 2 else 0x7F
    for _ in range(min(count, end - start)):
        item, entries = int.from_bytes(data[at : at + id_bytes], "big"), data[at + id_bytes]
        at += id_bytes + 1
        starts = range(at, at + index_bytes * entries, index_bytes)
        associations[item] = [int.from_bytes(data[i : i + index_bytes], "big") & index_mask for i in starts]
        at += index_bytes * entries
    return associations


def read_colours(data: bytes, start: int, end: int, properties: Properties) -> None:
    """Read a colour box.

    If there is both a profile and a colour space, the profile applies (see `convert_image`).
    """
    colour_type = data[start : start + 4]
    if colour_type in (b"prof", b"rICC"):
        properties.profile = data[start + 4 : end]
    elif colour_type == b"nclx":
        code_points = struct.unpack_from(">HH", data, start + 4)
        properties.colour_space, properties.ignored_colours = parse_cicp(*code_points)


def parse_clean_aperture(numbers: tuple[int, ...], width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a property `clap`: ISO/IEC 14496-12, 12.1.4.

    Raises:
        ImageError: with the class BrokenImage, if the rectangle is not inside the image or not aligned to pixels.
    """
    try:
        crop_width, crop_height, x, y = (Fraction(n, d) for n, d in zip(numbers[0::2], numbers[1::2], strict=True))
    except ZeroDivisionError:
        crop_width = crop_height = x = y = Fraction(0)
    left, top = x + (width - crop_width) / 2, y + (height - crop_height) / 2
    corners = (left, top, left + crop_width, top + crop_height)
    is_inside = 0 <= left < left + crop_width <= width and 0 <= top < top + crop_height <= height
    if not is_inside or any(value.denominator != 1 for value in corners):
        raise broken_image("AVIF: the clean aperture (clap) is not inside the image")
    return tuple(int(value) for value in corners)  # type: ignore[return-value]


def read_avif(stream: io.BytesIO) -> StoredImage:
    """Decode the first image of a file.

    Raises:
        ImageError: as `read_properties`.
    """
    data = stream.getvalue()
    properties = read_properties(data)
    with open_with_pillow(stream, "AVIF") as image:
        frames, mode = getattr(image, "n_frames", 1), image.mode
        has_alpha = mode.endswith("A")
        space = properties.colour_space
        is_converted = space is not None and not properties.profile and not space.is_srgb
        pixels: Image.Image | np.ndarray
        if properties.bits > 8 and is_converted and frames == 1 and not properties.is_sequence:
            pixels = decode_all_bits(data, properties)
        else:
            image.load()
            pixels = image.crop(properties.crop) if properties.crop else image
        stored = StoredImage(
            pixels=pixels,
            format="AVIF",
            mode="L" if properties.is_gray or mode in ("L", "LA") else "RGB",
            has_alpha=has_alpha,
            bit_depth=properties.bits,
            frames=frames,
            colour_space=space,
            ignored_colours=properties.ignored_colours,
        )
        copy_metadata(stored, image)
    # The rotation properties apply, and the orientation in EXIF is ignored.
    stored.orientation, stored.profile = properties.orientation, properties.profile
    return stored


def decode_all_bits(data: bytes, properties: Properties) -> np.ndarray:
    """Decode to (H,W), (H,W,3) or (H,W,4) uint16, scaled to the full range."""
    samples = imagecodecs.avif_decode(data, numthreads=1)
    if properties.crop:
        left, top, right, bottom = properties.crop
        samples = samples[top:bottom, left:right]
    for rows in row_strips(samples.shape[1], samples.shape[0]):
        samples[rows] = rescale(samples[rows], (1 << properties.bits) - 1, 65535)
    return samples
