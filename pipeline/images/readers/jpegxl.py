"""JPEG XL: libjxl decodes through imagecodecs; header and boxes say what the samples mean.

A JPEG file that was packed into a JPEG XL file is unpacked and read as JPEG, which keeps all of its metadata. imagecodecs
returns no ICC profile. Files in XYB, a colour space of JPEG XL for lossy files, need none, because libjxl converts them.
The profile of other files is read by pylibjxl, an optional library. Boxes follow ISO/IEC 18181-2.
"""

import io
from collections.abc import Iterator
from contextlib import suppress

import imagecodecs
import numpy as np

from imagemill.pipeline.images.colour import ColourSpace, SrgbConversion
from imagemill.pipeline.images.errors import broken_image, check_dimensions, unsupported_format
from imagemill.pipeline.images.readers.boxes import MAX_METADATA_BYTES, iterate_boxes, skip_exif_offset
from imagemill.pipeline.images.readers.extras import import_extra
from imagemill.pipeline.images.readers.jpeg import read_jpeg, read_jpeg_size
from imagemill.pipeline.images.readers.jpegxl_header import ALPHA, BLACK, CODESTREAM, Header, parse_header
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import expand_depth, row_strips, to_uint8

MAX_EXTRA_CHANNELS = 4
"""libjxl decodes each extra channel to four bytes per pixel, whether a caller wants the channel or not."""
HEADER_BYTES = 4096
CODE_OF_12_BITS = (0, 1)
"""The bits of this code in the order of the codestream."""
WHOLE, PART = b"jxlc", b"jxlp"
"""Boxes that contain the codestream, or a part of it after a number."""
COMPRESSED = b"brob"
EXIF, XMP, JPEG_RECONSTRUCTION = b"Exif", b"xml ", b"jbrd"

Boxes = dict[bytes, list[tuple[int, int]]]
"""By type: where the contents of boxes begin and end."""


def read_boxes(data: bytes) -> Boxes:
    """Return where the boxes of a file are. A file without boxes is one codestream."""
    if data.startswith(CODESTREAM):
        return {WHOLE: [(0, len(data))]}
    boxes: Boxes = {}
    for box_type, start, end in iterate_boxes(data, 0, len(data)):
        boxes.setdefault(box_type, []).append((start, end))
    return boxes


def join_codestream(data: bytes, boxes: Boxes, part_bytes: int | None = None) -> bytes:
    """Return the codestream, with at most `part_bytes` of each of its parts."""
    parts = boxes.get(WHOLE) or [(start + 4, end) for start, end in boxes.get(PART, ())]
    return b"".join(memoryview(data)[start:end][:part_bytes] for start, end in parts)


def read_header(data: bytes, boxes: Boxes) -> Header:
    """Parse the header of the codestream.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    try:
        header = parse_header(join_codestream(data, boxes, HEADER_BYTES))
    except ValueError as e:
        raise broken_image(f"JPEG XL: {e}") from None
    check_dimensions("JPEG XL", header.width, header.height)
    if len(header.extra_channels) > MAX_EXTRA_CHANNELS:
        raise unsupported_format(f"JPEG XL with {len(header.extra_channels)} extra channels")
    return header


def read_jpegxl_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the header."""
    data = stream.getvalue()
    header = read_header(data, read_boxes(data))
    return header.width, header.height


def read_jpegxl(stream: io.BytesIO) -> StoredImage:
    """Decode the first frame.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    data = stream.getvalue()
    boxes = read_boxes(data)
    header = read_header(data, boxes)
    if header.is_premultiplied:
        raise unsupported_format("JPEG XL with premultiplied opacity")
    if BLACK in header.extra_channels:
        raise unsupported_format("JPEG XL in CMYK")
    if JPEG_RECONSTRUCTION in boxes and (stored := unpack_jpeg(data, header)):
        return stored
    bit_depth, is_linear = max(8, header.bits), header.is_xyb and header.has_profile
    picture = request_12_bits(join_codestream(data, boxes), header) if is_linear else data
    try:
        samples = imagecodecs.jpegxl_decode(picture, index=0, keeporientation=True, numthreads=1)
    except imagecodecs.JpegxlError:
        raise broken_image("JPEG XL: the image data is damaged or truncated") from None
    has_alpha = ALPHA in header.extra_channels
    if header.is_gray and header.extra_channels and not has_alpha:
        # imagecodecs returns gray with other extra channels as planes.
        samples = samples[0]
    if samples.dtype.kind == "f":
        pixels = scale_floats(samples)
    else:
        pixels = samples
        expand_depth(pixels, header.bits)
    stored = StoredImage(
        pixels=convert_linear(pixels, header.is_gray) if is_linear else pixels,
        format="JPEGXL",
        mode="L" if header.is_gray else "RGB",
        has_alpha=has_alpha,
        bit_depth=bit_depth,
        orientation=header.orientation,
        profile=read_profile(data) if header.has_profile and not header.is_xyb else None,
        colour_space=header.colour_space,
        ignored_colours=header.ignored_colours,
    )
    stored.exif = next((skip_exif_offset(exif) for exif in read_metadata(data, boxes, EXIF)), None)
    stored.xmp = next(read_metadata(data, boxes, XMP), None)
    return stored


def unpack_jpeg(data: bytes, header: Header) -> StoredImage | None:
    """Restore the JPEG that a file was made from, and decode it; None if it cannot be restored."""
    try:
        jpeg = imagecodecs.jpegxl_decode_jpeg(data, numthreads=1)
    except (imagecodecs.JpegxlError, ValueError):
        return None
    if read_jpeg_size(io.BytesIO(jpeg)) != (header.width, header.height):
        return None
    stored = read_jpeg(io.BytesIO(jpeg))
    stored.format = "JPEGXL"
    return stored


def request_12_bits(codestream: bytes, header: Header) -> bytes:
    """Prepare an XYB codestream with an ICC profile, which libjxl returns as linear sRGB, for which 8 bits are too few.

    In XYB, the depth says nothing about the coded data, so the code of 8 bits can be replaced by that of 12 bits.
    """
    if header.bits != 8:
        return codestream
    header.bits = 12
    patched = bytearray(codestream)
    for bit, value in enumerate(CODE_OF_12_BITS, header.bits_at):
        patched[bit // 8] = patched[bit // 8] & ~(1 << bit % 8) | value << bit % 8
    return bytes(patched)


def convert_linear(pixels: np.ndarray, is_gray: bool) -> np.ndarray:
    """Convert linear sRGB (H,W) or (H,W,C), uint8 or uint16, to sRGB uint8. Alpha is only scaled."""
    conversion = SrgbConversion(ColourSpace(curve=1.0), pixels.dtype, is_gray, 0)
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    colours = 1 if is_gray else 3
    converted = np.empty(planes.shape, np.uint8)
    for rows in row_strips(planes.shape[1], planes.shape[0]):
        light = planes[rows][..., :colours]
        converted[rows][..., :colours] = conversion(light[..., 0])[..., None] if is_gray else conversion(light)
        alpha = planes[rows][..., colours:]
        converted[rows][..., colours:] = to_uint8(alpha, 8 * pixels.itemsize)
    return converted.reshape(pixels.shape)


def read_profile(data: bytes) -> bytes | None:
    """Read the ICC profile.

    Raises:
        ImageError: with the class MissingExtra.
    """
    library = import_extra(("pylibjxl",), "jxl", "JPEG XL with an ICC profile")
    with library.JXL(threads=1) as codec:
        _, metadata = codec.decode(data, metadata=True)
    return metadata.get("icc")


def read_metadata(data: bytes, boxes: Boxes, kind: bytes) -> Iterator[bytes]:
    """Yield the contents of boxes of a kind of metadata; damaged and very large ones are left out."""
    yield from (data[start:end] for start, end in boxes.get(kind, ()))
    for start, end in boxes.get(COMPRESSED, ()):
        if data[start : start + 4] == kind:
            with suppress(imagecodecs.BrotliError, ValueError):
                yield bytes(imagecodecs.brotli_decode(data[start + 4 : end], out=MAX_METADATA_BYTES))


def scale_floats(samples: np.ndarray) -> np.ndarray:
    """Clip floating-point samples to 0..1, and scale them to uint16."""
    pixels = np.empty(samples.shape, np.uint16)
    for rows in row_strips(samples.shape[1], samples.shape[0]):
        pixels[rows] = np.round(np.clip(np.nan_to_num(samples[rows].astype(np.float32)), 0, 1) * 65535)
    return pixels
