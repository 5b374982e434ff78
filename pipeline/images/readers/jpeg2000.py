"""JPEG 2000: OpenJPEG decodes samples at full depth; boxes of the file say what they mean.

Pillow shifts samples of other than 8 bits instead of scaling them, and ignores profiles and channel definitions. imagecodecs
applies palettes, the order of channels, the matrix of sYCC and profiles; profiles are hidden from it.
"""

import io
import struct
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace, parse_cicp
from imagemill.pipeline.images.errors import broken_image, check_dimensions, unsupported_format, unsupported_samples
from imagemill.pipeline.images.readers.boxes import find_box, iterate_boxes
from imagemill.pipeline.images.readers.pillow import copy_text_and_resolution
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

CODESTREAM = b"\xff\x4f\xff\x51"
ENUMERATED, RESTRICTED_ICC, ANY_ICC, PARAMETERIZED = 1, 2, 3, 5
BILEVEL, CMYK, BILEVEL_BLACK_IS_ONE, SRGB, GRAY, SYCC = 0, 12, 15, 16, 17, 18
UNSUPPORTED_SPACES = {
    **{1: "YCbCr(1)", 3: "YCbCr(2)", 4: "YCbCr(3)", 9: "PhotoYCC", 11: "CMY", 13: "YCCK", 14: "CIELab"},
    **{19: "CIEJab", 20: "e-sRGB", 21: "ROMM RGB", 24: "e-sYCC"},
}
"""Enumerated colour spaces of ISO/IEC 15444-1 and 15444-2 that cannot be read."""
COLOURS_BY_SPACE = {CMYK: 4, GRAY: 1, BILEVEL: 1, BILEVEL_BLACK_IS_ONE: 1, SRGB: 3, SYCC: 3}
"""The number of colour channels by enumerated colour space."""
COLOUR, OPACITY, PREMULTIPLIED = 0, 1, 2
CHROMA_STEPS = ((1, 1), (2, 1), (2, 2))


@dataclass
class Header:
    """What the boxes and the codestream of a file say about its samples."""

    width: int
    height: int
    bits: list[int]
    """Bits of each component or, with a palette, of each column of the palette."""
    is_signed: bool
    steps: list[tuple[int, int]]
    """Horizontal and vertical distance of the samples of each component."""
    space: int | None = None
    """The enumerated colour space."""
    profile: bytes | None = None
    profile_at: int = 0
    """Offset of the content of the profile's box."""
    colour_space: ColourSpace | None = None
    ignored_colours: str = ""
    channel_types: dict[int, int] = field(default_factory=dict)
    """By channel: COLOUR, OPACITY or PREMULTIPLIED."""


def parse_header(data: bytes) -> Header:
    """Parse the boxes and the codestream's header.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    codestream = 0 if data.startswith(CODESTREAM) else None
    if codestream is None and (box := find_box(data, (b"jp2c",), 0, len(data))):
        codestream = box[1]
    if codestream is None:
        # The length of the last box of a truncated file is invalid, but the codestream may be found.
        codestream = data.find(CODESTREAM)
    if codestream < 0 or data[codestream : codestream + 4] != CODESTREAM:
        raise broken_image("JPEG 2000: the file has no codestream")
    right, bottom, left, top, *_, count = struct.unpack_from(">8IH", data, codestream + 8)
    components = [struct.unpack_from("3B", data, codestream + 42 + 3 * n) for n in range(count)]
    check_dimensions("JPEG 2000", right - left, bottom - top)
    if not count or any(not x or not y for _, x, y in components):
        raise broken_image("JPEG 2000: the header declares components without samples")
    header = Header(
        width=right - left,
        height=bottom - top,
        bits=[(precision & 0x7F) + 1 for precision, _, _ in components],
        is_signed=any(precision & 0x80 for precision, _, _ in components),
        steps=[(x, y) for _, x, y in components],
    )
    if codestream and (header_box := find_box(data, (b"jp2h",), 0, len(data))):
        for box_type, start, end in iterate_boxes(data, header_box[1], header_box[2]):
            has_colours = header.space is not None or header.profile or header.colour_space
            if box_type == b"colr" and not has_colours:
                read_colours(data, start, end, header)
            elif box_type == b"pclr":
                columns = data[start + 2]
                precisions = data[start + 3 : start + 3 + columns]
                header.bits = [(precision & 0x7F) + 1 for precision in precisions]
                header.is_signed = any(precision & 0x80 for precision in precisions)
            elif box_type == b"cdef":
                entries = struct.unpack_from(f">{3 * ((end - start - 2) // 6)}H", data, start + 2)
                header.channel_types = dict(zip(entries[0::3], entries[1::3], strict=True))
    return header


def read_colours(data: bytes, start: int, end: int, header: Header) -> None:
    """Read a colour box.

    Raises:
        ImageError: with the class UnsupportedFormat.
    """
    method = data[start]
    if method == ENUMERATED:
        (space,) = struct.unpack_from(">I", data, start + 3)
        if space in UNSUPPORTED_SPACES:
            raise unsupported_format(f"JPEG 2000 in the colour space {UNSUPPORTED_SPACES[space]}")
        header.space = space
    elif method in (RESTRICTED_ICC, ANY_ICC):
        header.profile, header.profile_at = data[start + 3 : end], start
    elif method == PARAMETERIZED:
        code_points = struct.unpack_from(">2H", data, start + 3)
        header.colour_space, header.ignored_colours = parse_cicp(*code_points)


def read_jpeg2000_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the codestream's header."""
    header = parse_header(stream.getvalue())
    return header.width, header.height


def read_jpeg2000(stream: io.BytesIO) -> StoredImage:
    """Decode the image of a file.

    Raises:
        ImageError: with the class BrokenImage, UnsupportedFormat or UnsupportedMode.
    """
    data = stream.getvalue()
    header = parse_header(data)
    check_samples(header)
    if header.profile:
        data = hide_profile(data, header)
    samples = imagecodecs.jpeg2k_decode(data, numthreads=1)
    del data
    if samples.ndim not in (2, 3) or samples.dtype.itemsize > 2:
        raise unsupported_format(f"JPEG 2000 with samples of shape {samples.shape} and type {samples.dtype}")
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    colours = COLOURS_BY_SPACE.get(header.space or -1, 0)
    # Like other decoders, take two and four channels for colours with opacity if no box defines the channels.
    is_opacity_assumed = not header.channel_types and channels in (2, 4) and colours != 4
    has_alpha = is_opacity_assumed or OPACITY in header.channel_types.values()
    colours = colours or (4 if is_cmyk(header.profile) else 1 if channels < 3 else 3)
    if channels < colours + has_alpha or (colours == 4 and has_alpha):
        raise unsupported_format(f"JPEG 2000 with {channels} channels, of which {colours} are colours,")
    bits = (header.bits * channels)[:channels]
    pixels = scale_to_full_range(samples, bits, header.is_signed, colours + has_alpha)
    if header.space == BILEVEL_BLACK_IS_ONE:
        pixels = np.iinfo(pixels.dtype).max - pixels
    bit_depth = 1 if bits == [1] else max(8, *bits)
    if colours == 4:
        inks = pixels if pixels.dtype == np.uint8 else rescale(pixels, 65535, 255).astype(np.uint8)
        image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
        return StoredImage(image, "JPEG2000", "CMYK", False, bit_depth, profile=header.profile)
    stored = StoredImage(
        pixels=pixels,
        format="JPEG2000",
        mode="L" if colours == 1 else "RGB",
        has_alpha=has_alpha,
        bit_depth=bit_depth,
        profile=header.profile,
        colour_space=header.colour_space,
        ignored_colours=header.ignored_colours,
    )
    copy_text_and_resolution(stored, stream)
    return stored


def hide_profile(data: bytes, header: Header) -> bytes:
    """Replace the profile by an enumerated colour space, so that imagecodecs does not apply it.

    The box keeps its length.
    """
    space = CMYK if is_cmyk(header.profile) else GRAY if len(header.bits) < 3 else SRGB
    at = header.profile_at
    return b"".join((data[:at], bytes([ENUMERATED, 0, 0]), struct.pack(">I", space), data[at + 7 :]))


def is_cmyk(profile: bytes | None) -> bool:
    """Return whether an ICC profile is one of CMYK."""
    return profile is not None and profile[16:20] == b"CMYK"


def check_samples(header: Header) -> None:
    """Check that OpenJPEG returns the samples of a file as they are meant.

    Raises:
        ImageError: with the class UnsupportedMode or UnsupportedFormat.
    """
    if max(header.bits) > 16:
        raise unsupported_samples(f"JPEG 2000 with {max(header.bits)}-bit integer samples")
    if PREMULTIPLIED in header.channel_types.values():
        raise unsupported_format("JPEG 2000 with premultiplied opacity")
    full, *chroma = header.steps[:3]
    if len(set(header.steps)) == 1 and full == (1, 1):
        return
    is_subsampled = len(chroma) == 2 and full == (1, 1) and chroma[0] == chroma[1] and chroma[0] in CHROMA_STEPS
    if not is_subsampled or header.space not in (SYCC, None) or len(header.steps) > 3:
        raise unsupported_format(f"JPEG 2000 with components subsampled by {header.steps}")


def scale_to_full_range(samples: np.ndarray, bits: list[int], is_signed: bool, channels: int) -> np.ndarray:
    """Scale the first channels to the full range of uint8 or uint16.

    Args:
        samples: (H,W) or (H,W,C).
        bits: of each channel.
        is_signed: whether samples are signed.
        channels: how many channels to return.
    """
    is_deep = max(bits) > 8
    dtype_max = 65535 if is_deep else 255
    if not is_signed and {*bits[:channels]} == {16 if is_deep else 8}:
        return samples if samples.ndim == 2 else np.ascontiguousarray(samples[..., :channels])
    planes = samples[..., None] if samples.ndim == 2 else samples
    pixels = np.empty((*planes.shape[:2], channels), np.uint16 if is_deep else np.uint8)
    for rows in row_strips(planes.shape[1], planes.shape[0]):
        for channel in range(channels):
            depth = bits[channel]
            plane = planes[rows][..., channel].astype(np.int32) + ((1 << depth - 1) if is_signed else 0)
            pixels[rows][..., channel] = rescale(np.clip(plane, 0, (1 << depth) - 1), (1 << depth) - 1, dtype_max)
    return pixels[..., 0] if samples.ndim == 2 or channels == 1 else pixels
