"""AVIF: libavif decodes through Pillow; properties that it leaves to its caller follow here.

These properties are the clean aperture (`clap`, a crop), rotations and mirrors in their order, and colour spaces
other than sRGB. An image of more than 8 bits whose colours are converted is decoded by imagecodecs, which returns all
bits. Boxes follow ISO/IEC 14496-12 and 23008-12.
"""

import io
import struct
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace, parse_cicp
from imagemill.pipeline.images.orientation import STORED, find_orientation
from imagemill.pipeline.images.readers.boxes import Box, find_box, iterate_boxes
from imagemill.pipeline.images.readers.heif_items import read_clean_aperture, read_items, turn
from imagemill.pipeline.images.readers.pillow import copy_metadata, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import expand_depth

SAMPLE_ENTRY_BYTES = 78
"""Bytes of the fields in a video track's sample entry, before its boxes."""


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
    upright: np.ndarray = field(default_factory=lambda: STORED)
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
    else:
        boxes = read_items(data).primary_properties(of_tiles=(b"av1C", b"colr"))
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
            properties.crop = read_clean_aperture(data, start, size, properties.upright)
        else:
            properties.upright = turn(properties.upright, (box_type, start, end), data)
    properties.orientation = find_orientation(properties.upright)
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
    expand_depth(samples, properties.bits)
    return samples
