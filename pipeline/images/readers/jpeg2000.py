"""JPEG 2000: OpenJPEG's samples at full depth, and what the boxes of the file say they are.

Pillow shifts samples of other than 8 bits instead of scaling them, and looks at neither profiles nor the kinds of channels.
imagecodecs applies palettes, the order of channels, the matrix of sYCC and profiles; the last of these it is kept from.
"""

import io
import struct
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace, cicp
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.boxes import boxes, find
from imagemill.pipeline.images.readers.pillow import copy_text_and_resolution
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

CODESTREAM = b"\xff\x4f\xff\x51"
ENUMERATED, RESTRICTED_ICC, ANY_ICC, PARAMETERS = 1, 2, 3, 5
BILEVEL, CMYK, BILEVEL_BLACK_IS_ONE, SRGB, GRAY, SYCC = 0, 12, 15, 16, 17, 18
REFUSED = {
    **{1: "YCbCr(1)", 3: "YCbCr(2)", 4: "YCbCr(3)", 9: "PhotoYCC", 11: "CMY", 13: "YCCK", 14: "CIELab"},
    **{19: "CIEJab", 20: "e-sRGB", 21: "ROMM RGB", 24: "e-sYCC"},
}
"""Enumerated colour spaces of 15444-1 and -2 that we cannot read."""
COLOUR, OPACITY, PREMULTIPLIED = 0, 1, 2
CHROMA_STEPS = ((1, 1), (2, 1), (2, 2))


@dataclass
class Description:
    """What a file says about its samples."""

    width: int
    height: int
    bits: list[int]
    """Of each component, or of each column of the palette."""
    signed: bool
    steps: list[tuple[int, int]]
    """Horizontal and vertical distance of the samples of each component."""
    space: int | None = None
    """The enumerated colour space."""
    profile: bytes | None = None
    profile_at: int = 0
    """Where in the file the content of the profile's box begins."""
    numbers: ColourSpace | None = None
    ignored: str = ""
    kinds: dict[int, int] = field(default_factory=dict)
    """The kind of each channel: colour or opacity."""


def description_of(data: bytes) -> Description:
    """What the boxes and the codestream's header say.

    Raises: ImageError.
    """
    stream = 0 if data.startswith(CODESTREAM) else None
    if stream is None and (box := find(data, (b"jp2c",), 0, len(data))):
        stream = box[1]
    if stream is None:
        # A file that was cut may have lost the length of its last box, but not the picture.
        stream = data.find(CODESTREAM)
    if stream < 0 or data[stream : stream + 4] != CODESTREAM:
        raise ImageError("BrokenImage", "a JPEG 2000 file without a codestream")
    right, bottom, left, top, *_, count = struct.unpack_from(">8IH", data, stream + 8)
    components = [struct.unpack_from("3B", data, stream + 42 + 3 * n) for n in range(count)]
    if right <= left or bottom <= top or not count or any(not x or not y for _, x, y in components):
        raise ImageError("BrokenImage", f"a JPEG 2000 picture of {right - left}×{bottom - top} pixels")
    description = Description(
        width=right - left,
        height=bottom - top,
        bits=[(precision & 0x7F) + 1 for precision, _, _ in components],
        signed=any(precision & 0x80 for precision, _, _ in components),
        steps=[(x, y) for _, x, y in components],
    )
    if stream and (header := find(data, (b"jp2h",), 0, len(data))):
        for kind, start, end in boxes(data, header[1], header[2]):
            if kind == b"colr" and description.space is None and not description.profile and not description.numbers:
                read_colours(data, start, end, description)
            elif kind == b"pclr":
                columns = data[start + 2]
                description.bits = [(value & 0x7F) + 1 for value in data[start + 3 : start + 3 + columns]]
                description.signed = any(value & 0x80 for value in data[start + 3 : start + 3 + columns])
            elif kind == b"cdef":
                entries = struct.unpack_from(f">{3 * ((end - start - 2) // 6)}H", data, start + 2)
                description.kinds = dict(zip(entries[0::3], entries[1::3], strict=True))
    return description


def read_colours(data: bytes, start: int, end: int, description: Description) -> None:
    """Note what a box of colours says.

    Raises: ImageError for colours that cannot be read.
    """
    method = data[start]
    if method == ENUMERATED:
        (space,) = struct.unpack_from(">I", data, start + 3)
        if space in REFUSED:
            raise ImageError("UnsupportedFormat", f"JPEG 2000 in {REFUSED[space]} is not supported; convert it")
        description.space = space
    elif method in (RESTRICTED_ICC, ANY_ICC):
        description.profile, description.profile_at = data[start + 3 : end], start
    elif method == PARAMETERS:
        primaries, transfer = struct.unpack_from(">2H", data, start + 3)
        description.numbers, description.ignored = cicp(primaries, transfer)


def read_jpeg2000_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the codestream's header. Raises: ImageError."""
    description = description_of(stream.getvalue())
    return description.width, description.height


def read_jpeg2000(stream: io.BytesIO) -> StoredImage:
    """The picture of a file.

    Raises: ImageError.
    """
    data = stream.getvalue()
    description = description_of(data)
    check(description)
    if description.profile:
        data = without_profile(data, description)
    samples = imagecodecs.jpeg2k_decode(data, numthreads=1)
    del data
    if samples.ndim not in (2, 3) or samples.dtype.itemsize > 2:
        raise ImageError("UnsupportedFormat", f"JPEG 2000 samples of shape {samples.shape} and type {samples.dtype}")
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    colours = {CMYK: 4, GRAY: 1, BILEVEL: 1, BILEVEL_BLACK_IS_ONE: 1, SRGB: 3, SYCC: 3}.get(description.space or -1, 0)
    # Without a box that says so, two and four channels are taken for colours with opacity, as everybody does.
    has_alpha = OPACITY in description.kinds.values() if description.kinds else channels in (2, 4) and colours != 4
    colours = colours or (4 if is_cmyk(description.profile) else 1 if channels < 3 else 3)
    if channels < colours + has_alpha or (colours == 4 and has_alpha):
        raise ImageError("UnsupportedFormat", f"JPEG 2000 with {channels} channels of which {colours} are colours")
    bits = (description.bits * channels)[:channels]
    pixels = whole_range(samples, bits, description.signed, colours + has_alpha)
    if description.space == BILEVEL_BLACK_IS_ONE:
        pixels = np.iinfo(pixels.dtype).max - pixels
    bit_depth = 1 if bits == [1] else max(8, *bits)
    if colours == 4:
        inks = pixels if pixels.dtype == np.uint8 else rescale(pixels, 65535, 255).astype(np.uint8)
        image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
        return StoredImage(image, "JPEG2000", "CMYK", False, bit_depth, profile=description.profile)
    opened = StoredImage(
        pixels=pixels,
        format="JPEG2000",
        mode="L" if colours == 1 else "RGB",
        has_alpha=has_alpha,
        bit_depth=bit_depth,
        profile=description.profile,
        space=description.numbers,
        ignored=description.ignored,
    )
    copy_text_and_resolution(opened, stream)
    return opened


def without_profile(data: bytes, description: Description) -> bytes:
    """The file with an enumerated space in place of its profile, which imagecodecs would apply itself.

    The box stays as long as it is.
    """
    space = CMYK if is_cmyk(description.profile) else GRAY if len(description.bits) < 3 else SRGB
    at = description.profile_at
    return b"".join((data[:at], bytes([ENUMERATED, 0, 0]), struct.pack(">I", space), data[at + 7 :]))


def is_cmyk(profile: bytes | None) -> bool:
    return profile is not None and profile[16:20] == b"CMYK"


def check(description: Description) -> None:
    """Raises: ImageError for samples that OpenJPEG would give as something else than what they are."""
    if max(description.bits) > 16:
        raise ImageError("UnsupportedMode", f"{max(description.bits)}-bit integer samples")
    if PREMULTIPLIED in description.kinds.values():
        raise ImageError("UnsupportedFormat", "JPEG 2000 with premultiplied opacity is not supported; convert it")
    full, *chroma = description.steps[:3]
    if len(set(description.steps)) == 1 and full == (1, 1):
        return
    subsampled = len(chroma) == 2 and full == (1, 1) and chroma[0] == chroma[1] and chroma[0] in CHROMA_STEPS
    if not subsampled or description.space not in (SYCC, None) or len(description.steps) > 3:
        raise ImageError("UnsupportedFormat", f"JPEG 2000 components with the steps {description.steps} are not supported")


def whole_range(samples: np.ndarray, bits: list[int], signed: bool, channels: int) -> np.ndarray:
    """The first channels of (H,W) or (H,W,C) samples, so that they use the whole range of uint8 or uint16."""
    deep = max(bits) > 8
    most = 65535 if deep else 255
    if not signed and {*bits[:channels]} == {16 if deep else 8}:
        return samples if samples.ndim == 2 else np.ascontiguousarray(samples[..., :channels])
    planes = samples[..., None] if samples.ndim == 2 else samples
    pixels = np.empty((*planes.shape[:2], channels), np.uint16 if deep else np.uint8)
    for rows in row_strips(planes.shape[1], planes.shape[0]):
        for channel in range(channels):
            depth = bits[channel]
            plane = planes[rows][..., channel].astype(np.int32) + ((1 << depth - 1) if signed else 0)
            pixels[rows][..., channel] = rescale(np.clip(plane, 0, (1 << depth) - 1), (1 << depth) - 1, most)
    return pixels[..., 0] if samples.ndim == 2 or channels == 1 else pixels
