"""JPEG by libjpeg-turbo, which says when picture data is damaged or missing; Pillow fills such places with gray in silence.

Pixels are those that Pillow gives, bit by bit. docs/damage.md has the table of what counts as damage.
"""

import io
import re
from typing import Literal

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imagemill.pipeline.images.errors import DECODER_ERRORS, ImageError
from imagemill.pipeline.images.readers.jpeg_structure import (
    ARITHMETIC,
    END_MARK,
    FRAMES,
    SOS,
    Structure,
    broken_profile,
    damaged_table,
    holds_zero_run,
    is_in_one_scan,
    lacks_scans,
    parse_structure,
    plain_copy,
    segments_behind,
)
from imagemill.pipeline.images.readers.pillow import copy_metadata, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import row_strips, to_uint8

MODES: dict[int, tuple[Literal["L", "RGB", "CMYK"], str]] = {1: ("L", "GRAY"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK")}
"""By the number of components: the mode of the samples, and what simplejpeg calls it."""
DAMAGE = re.compile(
    r"premature end of data|Premature end of JPEG|bad Huffman|bad arithmetic|extraneous bytes|found marker|Inconsistent"
)
"""Warnings of libjpeg for which pixels are wrong or missing; whatever else it says, it has given up."""
NOT_BY_TURBO = re.compile("Could not determine subsampling|Unsupported JPEG data precision")
"""What simplejpeg says of kinds of JPEG that it does not read."""
BYTES_BEFORE_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
LAST_RESTART = re.compile(rb"\xff[\xd0-\xd7]\Z")
READ_AHEAD = 8
"""Bytes that libjpeg-turbo has read ahead of the picture's end, and does not count as extraneous."""
LARGE_BLOCK_BYTES = 48
"""Bytes of a block of all components, on average, from which on one block too few or too many is seen by libjpeg."""
SURPLUS = bytes(8) + b"\x55\xaa\x33" * 8
"""What stands behind the data of each scan when it is decoded again: an encoder may leave out a few zero bytes there."""
MISSING_DATA = "a part of the picture data is missing"
MISSING_SCANS = "the scans that complete the picture are missing"
NO_PIXELS = np.empty((0, 0), np.uint8)


def read_jpeg_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the frame header. Raises: ImageError."""
    structure = parse_structure(stream.getvalue())
    return structure.width, structure.height


def read_jpeg(stream: io.BytesIO) -> StoredImage:
    """The picture of a JPEG, the first one of an MPO.

    Raises: ImageError with the class BrokenImage where not even a part of the picture can be decoded.
    """
    data = stream.getvalue()
    structure = parse_structure(data)
    damage = damage_of_header(data, structure)
    profile = broken_profile(data, structure)
    plain = plain_copy(data, structure)
    if plain is not data:
        data, structure = plain, parse_structure(plain)
    mode, _ = MODES[len(structure.components)]
    opened = StoredImage(NO_PIXELS, "JPEG", mode, has_alpha=False, bit_depth=max(8, structure.bits))
    add_metadata(opened, data, structure)
    opened.profile = opened.profile or profile
    pixels, damage_of_data = decoded(data, structure)
    opened.damage = damage or damage_of_data or (MISSING_SCANS if lacks_scans(data, structure) else None)
    if mode == "CMYK":
        # Always as Adobe's programs write them, 255 for no ink, as browsers and Pillow take them too.
        np.subtract(255, pixels, out=pixels)
        height, width = pixels.shape[:2]
        opened.pixels = Image.frombuffer("CMYK", (width, height), pixels, "raw", "CMYK", 0, 1)
    else:
        opened.pixels = pixels
    return opened


def add_metadata(opened: StoredImage, data: bytes, structure: Structure) -> None:
    """Put orientation, profile, EXIF, XMP and the number of pictures of a file into `opened`; none where they are broken."""
    if structure.bits > 8:
        # Pillow opens no such file, and is asked for nothing that lies behind this byte.
        frame = next(segment for segment in structure.segments if segment.marker in FRAMES)
        data = data[: frame.start] + b"\x08" + data[frame.start + 1 : structure.first_scan.end]
    try:
        with open_with_pillow(io.BytesIO(data), "JPEG") as image:
            opened.format = str(image.format)
            opened.frames = getattr(image, "n_frames", 1)
            copy_metadata(opened, image)
    except (UnidentifiedImageError, *DECODER_ERRORS):
        return


def damage_of_header(data: bytes, structure: Structure) -> str | None:
    """What is wrong with the tables, or with the bytes between the segments, for which pixels may be wrong."""
    if structure.has_foreign_bytes:
        *_, end = segments_behind(data, structure.first_scan)
        # Where a part of the metadata is lost, the first picture that is found may be the small one in it.
        if structure_follows(data, end.end):
            return "bytes of its header are lost, and another picture follows the first"
    return damaged_table(data, structure)


def structure_follows(data: bytes, place: int) -> bool:
    """Whether the frame header of another picture stands behind a place."""
    return any(data.find(bytes((0xFF, marker, 0)), place) >= 0 for marker in (*range(0xC0, 0xC4), SOS))


def decoded(data: bytes, structure: Structure) -> tuple[np.ndarray, str | None]:
    """The pixels of a JPEG as they are stored, uint8 (H,W), (H,W,3) or (H,W,4), and what is wrong with its picture data.

    Raises: ImageError with the class BrokenImage.
    """
    pixels, said = by_turbo(data, structure)
    if said and NOT_BY_TURBO.search(said):
        return decoded_twice(data, structure)
    if said:
        *_, end = segments_behind(data, structure.first_scan)
        if data[end.begin : end.end] != END_MARK:
            # With an end mark where the picture data ends, libjpeg tells a missing end mark from missing data.
            pixels, said = by_turbo(data[: end.begin] + END_MARK, structure)
        elif is_padding(data[: end.begin], said):
            said = None
    if said and not DAMAGE.search(said):
        raise ImageError("BrokenImage", f"libjpeg: {said}")
    if said:
        return pixels, f"libjpeg: {said}"
    if structure.frame in ARITHMETIC and not np.array_equal(pixels, by_turbo(with_surplus(data, structure), structure)[0]):
        return pixels, MISSING_DATA
    if holds_zero_run(data, structure):
        return pixels, "zero bytes take the place of picture data"
    return pixels, "picture data is left over when the picture is complete" if has_surplus(data, structure) else None


def by_turbo(data: bytes, structure: Structure) -> tuple[np.ndarray, str | None]:
    """Pixels, and the first warning or the error of libjpeg-turbo."""
    _, colorspace = MODES[len(structure.components)]
    pixels = np.empty((structure.height, structure.width, len(structure.components)), np.uint8)
    try:
        simplejpeg.decode_jpeg(data, colorspace, buffer=pixels, strict=True)
        said = None
    except ValueError as e:
        said = str(e)
    return pixels[..., 0] if colorspace == "GRAY" else pixels, said


def is_padding(data: bytes, said: str) -> bool:
    """Whether a warning is of zeros that a camera put behind the picture data. `data` ends at the end mark.

    Zeros that took the place of picture data are more than libjpeg calls extraneous: it decoded the first of them.
    """
    if not (found := BYTES_BEFORE_END.search(said)):
        return False
    surplus = int(found[1])
    last = data[-surplus - 2 * READ_AHEAD :]
    return surplus <= len(last) - len(last.rstrip(b"\0")) <= surplus + READ_AHEAD


def has_surplus(data: bytes, structure: Structure) -> bool:
    """Whether the picture is complete without the last byte of its data: bytes before it are lost, or have become others.

    libjpeg does not call bytes extraneous that it has read ahead. Where a block of the picture takes more bytes than that,
    it tells by itself. Elsewhere the Huffman codes are decoded once more.
    """
    if not is_in_one_scan(data, structure):
        return False
    *_, end = segments_behind(data, structure.first_scan)
    if end.begin - structure.first_scan.end > LARGE_BLOCK_BYTES * structure.blocks:
        return False
    needed = data[: end.begin]
    while needed != (needed := LAST_RESTART.sub(b"", needed.rstrip(b"\0\xff"))):
        pass
    colorspace = "CMYK" if len(structure.components) == 4 else "GRAY"
    try:
        simplejpeg.decode_jpeg(needed[:-1] + END_MARK, colorspace, min_height=1, min_width=1)
    except ValueError as e:
        return "premature end of data segment" not in str(e)
    return True


def decoded_twice(data: bytes, structure: Structure) -> tuple[np.ndarray, str | None]:
    """As `decoded`, of kinds that no decoder reads here that tells of damage: 12 or 16 bits, and rare sampling factors.

    Missing data is seen by what is decoded in its place: whatever stands behind it.
    """
    pixels = by_imagecodecs(data)
    again = by_imagecodecs(with_surplus(data, structure))
    damage = None if np.array_equal(pixels, again) else MISSING_DATA
    if structure.bits == 8:
        return pixels, damage
    narrow = np.empty(pixels.shape, np.uint8)
    for rows in row_strips(structure.width, structure.height):
        narrow[rows] = to_uint8(pixels[rows], structure.bits)
    return narrow, damage


def by_imagecodecs(data: bytes) -> np.ndarray:
    """Pixels as they are stored. Raises: ImageError with the class BrokenImage."""
    try:
        return imagecodecs.jpeg8_decode(data)
    except imagecodecs.Jpeg8Error as e:
        raise ImageError("BrokenImage", f"libjpeg: {e}") from None


def with_surplus(data: bytes, structure: Structure) -> bytes:
    """A JPEG with bytes behind the data of each scan that a decoder never looks at, unless data is missing there."""
    parts, place = [], 0
    scan = False
    for segment in segments_behind(data, structure.first_scan):
        if scan:
            parts += [data[place : segment.begin], SURPLUS]
            place = segment.begin
        scan = segment.marker == SOS
    return b"".join([*parts, data[place : segment.begin], END_MARK])
