"""JPEG: libjpeg-turbo decodes it and reports damage.

Pillow would fill missing image data with gray without a warning. The pixels equal Pillow's, bit by bit.
docs/damage.md lists what counts as damage.
"""

import io
import re
from typing import Literal

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imagemill.pipeline.images.errors import DECODER_ERRORS, broken_image
from imagemill.pipeline.images.readers.jpeg_structure import (
    ARITHMETIC,
    END_OF_IMAGE,
    FRAME_MARKERS,
    SOS,
    Structure,
    find_incomplete_profile,
    find_table_damage,
    has_single_huffman_scan,
    has_zero_fill,
    iterate_segments,
    lacks_scans,
    parse_structure,
    repair_header,
)
from imagemill.pipeline.images.readers.pillow import copy_metadata, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import row_strips, to_uint8

MODES: dict[int, tuple[Literal["L", "RGB", "CMYK"], str]] = {1: ("L", "GRAY"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK")}
"""By the number of components: the mode of the samples, and simplejpeg's name of it."""
DAMAGE_WARNING = re.compile(
    r"premature end of data|Premature end of JPEG|bad Huffman|bad arithmetic|extraneous bytes|found marker|Inconsistent"
)
"""Warnings of libjpeg that mean wrong or missing pixels. All its other messages mean that it gave up."""
UNSUPPORTED_BY_TURBO = re.compile("Could not determine subsampling|Unsupported JPEG data precision")
"""Messages of simplejpeg for kinds of JPEG that it does not support."""
BYTES_BEFORE_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
LAST_RESTART = re.compile(rb"\xff[\xd0-\xd7]\Z")
READ_AHEAD_BYTES = 8
"""Bytes that libjpeg-turbo reads ahead at the end of the image and does not count as extraneous."""
LARGE_UNIT_BYTES = 48
"""Average bytes per minimum coded unit from which libjpeg itself notices one missing or surplus unit."""
APPENDED_DATA = bytes(8) + b"\x55\xaa\x33" * 8
"""What `append_to_scans` puts after each scan. It begins with zeros because an encoder may omit a few final zero bytes."""
MISSING_DATA = "part of the image data is missing"
MISSING_SCANS = "scans that complete the image are missing"
NO_PIXELS = np.empty((0, 0), np.uint8)


def read_jpeg_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the frame header."""
    structure = parse_structure(stream.getvalue())
    return structure.width, structure.height


def read_jpeg(stream: io.BytesIO) -> StoredImage:
    """Decode a JPEG, or the first image of an MPO.

    Raises:
        ImageError: with the class BrokenImage, if no part of the image can be decoded.
    """
    data = stream.getvalue()
    structure = parse_structure(data)
    header_damage = find_header_damage(data, structure)
    incomplete_profile = find_incomplete_profile(data, structure)
    repaired = repair_header(data, structure)
    if repaired is not data:
        data, structure = repaired, parse_structure(repaired)
    mode, _ = MODES[len(structure.components)]
    stored = StoredImage(NO_PIXELS, "JPEG", mode, has_alpha=False, bit_depth=max(8, structure.bits))
    add_metadata(stored, data, structure)
    stored.profile = stored.profile or incomplete_profile
    pixels, data_damage = decode_jpeg(data, structure)
    stored.damage = header_damage or data_damage or (MISSING_SCANS if lacks_scans(data, structure) else None)
    if mode == "CMYK":
        # CMYK is taken as Adobe programs write it, with 255 for no ink. Browsers and Pillow do the same.
        np.subtract(255, pixels, out=pixels)
        height, width = pixels.shape[:2]
        stored.pixels = Image.frombuffer("CMYK", (width, height), pixels, "raw", "CMYK", 0, 1)
    else:
        stored.pixels = pixels
    return stored


def add_metadata(stored: StoredImage, data: bytes, structure: Structure) -> None:
    """Add orientation, profile, metadata and the number of images to `stored`.

    Broken metadata is skipped.
    """
    if structure.bits > 8:
        # Pillow refuses files of more than 8 bits per sample. Change the number to read the metadata; pixels are not
        # decoded.
        frame = next(segment for segment in structure.segments if segment.marker in FRAME_MARKERS)
        data = data[: frame.start] + b"\x08" + data[frame.start + 1 : structure.first_scan.end]
    try:
        with open_with_pillow(io.BytesIO(data), "JPEG") as image:
            stored.format = str(image.format)
            stored.frames = getattr(image, "n_frames", 1)
            copy_metadata(stored, image)
    except (UnidentifiedImageError, *DECODER_ERRORS):
        return


def find_header_damage(data: bytes, structure: Structure) -> str | None:
    """Describe damage of the header that may cause wrong pixels; None if there is none."""
    if structure.has_stray_bytes:
        *_, end = iterate_segments(data, structure.first_scan)
        # If bytes of the metadata are lost, the first image in the file may be the thumbnail.
        if contains_frame(data, end.end):
            return "bytes of the header are lost, and another image follows the first"
    return find_table_damage(data, structure)


def contains_frame(data: bytes, position: int) -> bool:
    """Return whether the frame header or the scan of another image follows."""
    return any(data.find(bytes((0xFF, marker, 0)), position) >= 0 for marker in (*range(0xC0, 0xC4), SOS))


def decode_jpeg(data: bytes, structure: Structure) -> tuple[np.ndarray, str | None]:
    """Decode the stored pixels of a JPEG and find damage of its image data.

    Returns:
        (H,W), (H,W,3) or (H,W,4) uint8, and a description of the damage or None.

    Raises:
        ImageError: with the class BrokenImage.
    """
    pixels, message = decode_with_turbo(data, structure)
    if message and UNSUPPORTED_BY_TURBO.search(message):
        return decode_twice(data, structure)
    if message:
        *_, end = iterate_segments(data, structure.first_scan)
        if data[end.begin : end.end] != END_OF_IMAGE:
            # With an end marker after the image data, libjpeg tells a missing end marker from missing data.
            pixels, message = decode_with_turbo(data[: end.begin] + END_OF_IMAGE, structure)
        elif is_padding(data[: end.begin], message):
            message = None
    if message and not DAMAGE_WARNING.search(message):
        raise broken_image(f"libjpeg: {message}")
    if message:
        return pixels, f"libjpeg: {message}"
    if structure.frame_marker in ARITHMETIC:
        again, _ = decode_with_turbo(append_to_scans(data, structure), structure)
        if not np.array_equal(pixels, again):
            return pixels, MISSING_DATA
    if has_zero_fill(data, structure):
        return pixels, "zero bytes replace image data"
    return pixels, "image data remains after the image is complete" if has_surplus_data(data, structure) else None


def decode_with_turbo(data: bytes, structure: Structure) -> tuple[np.ndarray, str | None]:
    """Return the pixels, and the first warning or the error of libjpeg-turbo."""
    _, colorspace = MODES[len(structure.components)]
    pixels = np.empty((structure.height, structure.width, len(structure.components)), np.uint8)
    try:
        simplejpeg.decode_jpeg(data, colorspace, buffer=pixels, strict=True)
        message = None
    except ValueError as e:
        message = str(e)
    return pixels[..., 0] if colorspace == "GRAY" else pixels, message


def is_padding(data: bytes, message: str) -> bool:
    """Return whether a warning is about zeros that a camera appended, rather than damage.

    If zeros had replaced image data, there would be more of them than libjpeg counts, because it decoded the first ones.

    Args:
        data: the file up to its end marker.
        message: the warning of libjpeg.
    """
    if not (match := BYTES_BEFORE_END.search(message)):
        return False
    surplus = int(match[1])
    tail = data[-surplus - 2 * READ_AHEAD_BYTES :]
    return surplus <= len(tail) - len(tail.rstrip(b"\0")) <= surplus + READ_AHEAD_BYTES


def has_surplus_data(data: bytes, structure: Structure) -> bool:
    """Return whether the image is complete without the last byte of its data.

    Then earlier bytes are lost or changed. libjpeg does not count the bytes that it read ahead as extraneous. If a
    coded unit takes more bytes than that, libjpeg itself reports surplus data. Otherwise the Huffman codes are
    decoded once more, without the last byte.
    """
    if not has_single_huffman_scan(data, structure):
        return False
    *_, end = iterate_segments(data, structure.first_scan)
    if end.begin - structure.first_scan.end > LARGE_UNIT_BYTES * structure.minimum_coded_units:
        return False
    needed = data[: end.begin]
    while needed != (needed := LAST_RESTART.sub(b"", needed.rstrip(b"\0\xff"))):
        pass
    colorspace = "CMYK" if len(structure.components) == 4 else "GRAY"
    try:
        simplejpeg.decode_jpeg(needed[:-1] + END_OF_IMAGE, colorspace, min_height=1, min_width=1)
    except ValueError as e:
        return "premature end of data segment" not in str(e)
    return True


def decode_twice(data: bytes, structure: Structure) -> tuple[np.ndarray, str | None]:
    """Do the work of `decode_jpeg` for kinds of JPEG whose decoder reports no damage.

    These are 12 and 16 bits per sample, and rare sampling factors. If data is missing, the decoder continues with the
    bytes that follow. So the image is decoded twice, with different bytes after each scan.
    """
    pixels = decode_with_imagecodecs(data)
    again = decode_with_imagecodecs(append_to_scans(data, structure))
    damage = None if np.array_equal(pixels, again) else MISSING_DATA
    if structure.bits == 8:
        return pixels, damage
    converted = np.empty(pixels.shape, np.uint8)
    for rows in row_strips(structure.width, structure.height):
        converted[rows] = to_uint8(pixels[rows], structure.bits)
    return converted, damage


def decode_with_imagecodecs(data: bytes) -> np.ndarray:
    """Decode the stored pixels.

    Raises:
        ImageError: with the class BrokenImage.
    """
    try:
        return imagecodecs.jpeg8_decode(data)
    except imagecodecs.Jpeg8Error as e:
        raise broken_image(f"libjpeg: {e}") from None


def append_to_scans(data: bytes, structure: Structure) -> bytes:
    """Append bytes to each scan that a decoder reads only if data is missing."""
    parts, position = [], 0
    is_after_scan = False
    for segment in iterate_segments(data, structure.first_scan):
        if is_after_scan:
            parts += [data[position : segment.begin], APPENDED_DATA]
            position = segment.begin
        is_after_scan = segment.marker == SOS
    return b"".join([*parts, data[position : segment.begin], END_OF_IMAGE])
