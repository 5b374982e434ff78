"""PBM, PGM, PPM and PAM, plain and raw, decoded by NumPy.

Pillow takes seconds per megapixel for all files except raw ones of 8 bits.
"""

import io
import re
from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.images.errors import (
    ImageError,
    broken_image,
    check_dimensions,
    unsupported_format,
    unsupported_samples,
)
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

PLAIN_BITMAP, PLAIN_GRAY, PLAIN_RGB, BITMAP, RAW_GRAY, RAW_RGB, ARBITRARY = (b"P%d" % n for n in range(1, 8))
PLAIN = (PLAIN_BITMAP, PLAIN_GRAY, PLAIN_RGB)
CHANNELS = {PLAIN_BITMAP: 1, BITMAP: 1, PLAIN_GRAY: 1, RAW_GRAY: 1, PLAIN_RGB: 3, RAW_RGB: 3}
TUPLE_TYPES = {
    *((name, depth) for depth, name in enumerate((b"GRAYSCALE", b"GRAYSCALE_ALPHA", b"RGB", b"RGB_ALPHA"), 1)),
    *((b"BLACKANDWHITE", 1), (b"BLACKANDWHITE_ALPHA", 2)),
    *((b"", depth) for depth in (1, 2, 3, 4)),
}
"""Supported TUPLTYPE and DEPTH of a PAM. Without a type, the depth decides."""
BLANK = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])*")
NUMBER = re.compile(rb"[0-9]{1,10}(?![0-9])")
COMMENT = re.compile(rb"#[^\n\r]*")
MAX_HEADER_BYTES = 100_000
TEXT_BYTES = 8_000_000
"""How much of a plain file is parsed at a time."""


@dataclass(frozen=True)
class Header:
    """The header of one image."""

    magic: bytes
    width: int
    height: int
    channels: int
    sample_max: int
    """The sample that stands for white."""
    pixels_at: int

    @property
    def raw_layout(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of the samples in a raw file."""
        if self.magic == BITMAP:
            return (self.height, (self.width + 7) // 8), np.dtype(np.uint8)
        shape = (self.height, self.width, self.channels)
        return shape if self.channels > 1 else shape[:2], np.dtype(">u2" if self.sample_max > 255 else "u1")

    @property
    def end(self) -> int:
        """Offset after the samples in a raw file."""
        shape, dtype = self.raw_layout
        size = dtype.itemsize
        for side in shape:
            size *= side
        return self.pixels_at + size


def parse_header(data: bytes, start: int) -> Header:
    """Parse the header of the image at offset `start`.

    Raises:
        ImageError: with the class BrokenImage, UnsupportedFormat or UnsupportedMode.
    """
    magic = data[start : start + 2]
    if magic in (b"Pf", b"PF"):
        raise unsupported_samples("floating-point samples")
    if magic == ARBITRARY:
        return parse_pam_header(data, start)
    at, numbers = start + 2, []
    for _ in range(2 if magic in (PLAIN_BITMAP, BITMAP) else 3):
        blank = BLANK.match(data, at, start + MAX_HEADER_BYTES)
        number = NUMBER.match(data, blank.end() if blank else at, start + MAX_HEADER_BYTES)
        if not number or number.start() == at:
            raise broken_image(f"{magic.decode('latin-1')}: the header is damaged")
        numbers.append(int(number[0]))
        at = number.end()
    width, height, sample_max = (*numbers, 1)[:3]
    # One blank, or a comment and one blank, ends the header of a raw image.
    if data[at : at + 1] == b"#":
        at = COMMENT.match(data, at).end()  # type: ignore[union-attr]
    return check_header(Header(magic, width, height, CHANNELS[magic], sample_max, at + 1))


def parse_pam_header(data: bytes, start: int) -> Header:
    """Parse the header of a PAM, which has a name and a value on each line.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    end = data.find(b"\nENDHDR\n", start, start + MAX_HEADER_BYTES)
    values: dict[bytes, bytes] = {}
    for line in data[start + 2 : max(end, 0)].split(b"\n"):
        name, _, value = line.strip().partition(b" ")
        if name and not name.startswith(b"#"):
            values[name] = b" ".join((values.get(name, b""), value.strip())).strip()
    try:
        width, height, depth, sample_max = (int(values[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    except (KeyError, ValueError):
        raise broken_image("PAM (P7): the header is damaged") from None
    tuple_type = values.get(b"TUPLTYPE", b"")
    if (tuple_type, depth) not in TUPLE_TYPES:
        raise unsupported_format(f"PAM of type {tuple_type.decode('latin-1')!r} with {depth} channels")
    return check_header(Header(ARBITRARY, width, height, depth, sample_max, end + 8))


def check_header(header: Header) -> Header:
    """Return the header if its numbers are valid.

    Raises:
        ImageError: with the class BrokenImage.
    """
    name = header.magic.decode()
    check_dimensions(name, header.width, header.height)
    if not 0 < header.sample_max < 65536:
        raise broken_image(f"{name}: the header declares an invalid maximum of {header.sample_max}")
    return header


def read_ppm_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the header."""
    header = parse_header(stream.getvalue(), 0)
    return header.width, header.height


def read_ppm(stream: io.BytesIO) -> StoredImage:
    """Decode the first image of a file.

    Raises:
        ImageError: with the class BrokenImage, UnsupportedFormat or UnsupportedMode.
    """
    data = stream.getvalue()
    header = parse_header(data, 0)
    if header.magic == PLAIN_BITMAP:
        pixels = decode_plain_bits(data, header)
    elif header.magic in PLAIN:
        pixels = decode_plain_numbers(data, header)
    else:
        pixels = decode_raw(data, header)
    is_bilevel = header.sample_max == 1 and header.channels == 1
    return StoredImage(
        pixels=pixels,
        format="PPM",
        mode="L" if header.channels < 3 else "RGB",
        has_alpha=header.channels in (2, 4),
        bit_depth=1 if is_bilevel else max(8, header.sample_max.bit_length()),
        frames=1 if header.magic in PLAIN else 1 + count_images(data, header.end),
    )


def count_images(data: bytes, at: int) -> int:
    """Count the complete raw images from offset `at` on."""
    count = 0
    while data[at : at + 1] == b"P":
        try:
            at = parse_header(data, at).end
        except (ImageError, KeyError):
            break
        count += at <= len(data)
    return count


def decode_raw(data: bytes, header: Header) -> np.ndarray:
    """Decode a raw image to (H,W) or (H,W,C) uint8, scaled to the full range.

    Raises:
        ImageError: with the class BrokenImage.
    """
    if header.end > len(data):
        raise broken_image(f"PPM: the file is truncated: {header.end - len(data)} of {header.end} bytes are missing")
    shape, dtype = header.raw_layout
    count = (header.end - header.pixels_at) // dtype.itemsize
    stored = np.frombuffer(data, dtype, count, header.pixels_at).reshape(shape)
    if header.magic == BITMAP:
        # A bit of 1 is black.
        return (1 - np.unpackbits(stored, axis=1, count=header.width)) * np.uint8(255)
    if header.sample_max == 255:
        return stored
    pixels = np.empty(shape, np.uint8)
    for rows in row_strips(header.width, header.height):
        pixels[rows] = scale_samples(stored[rows], header.sample_max)
    return pixels


def scale_samples(samples: np.ndarray, sample_max: int) -> np.ndarray:
    """Scale samples in 0..sample_max to uint8, rounded.

    Raises:
        ImageError: with the class BrokenImage, if a sample exceeds `sample_max`.
    """
    if samples.size and (largest := int(samples.max())) > sample_max:
        raise broken_image(f"PPM: the sample {largest} is over the maximum in the header, {sample_max}")
    return rescale(samples, sample_max, 255).astype(np.uint8)


def decode_plain_bits(data: bytes, header: Header) -> np.ndarray:
    """Decode a plain bitmap to (H,W) uint8. Blanks between its digits are optional.

    Raises:
        ImageError: with the class BrokenImage.
    """
    count = header.width * header.height
    text = np.frombuffer(COMMENT.sub(b"", data[header.pixels_at :]), np.uint8)
    digits = text[(text == ord("0")) | (text == ord("1"))][:count]
    if len(digits) < count:
        raise broken_image(f"PPM: the file is truncated: {len(digits)} of {count} samples")
    return ((ord("1") - digits) * np.uint8(255)).reshape(header.height, header.width)


def decode_plain_numbers(data: bytes, header: Header) -> np.ndarray:
    """Decode decimal numbers to (H,W) or (H,W,C) uint8, scaled to the full range.

    Raises:
        ImageError: with the class BrokenImage.
    """
    shape, _ = header.raw_layout
    count = header.width * header.height * header.channels
    pixels, filled, at = np.empty(count, np.uint8), 0, header.pixels_at
    while filled < count and at < len(data):
        end = min(len(data), at + TEXT_BYTES)
        # Continue to the end of the line, so that no number and no comment is split.
        line_end = re.compile(rb"[\n\r]").search(data, end, end + TEXT_BYTES)
        end = line_end.end() if line_end else len(data)
        text = COMMENT.sub(b"", data[at:end])
        if text.translate(None, b"0123456789 \t\n\v\f\r"):
            raise broken_image("PPM: the samples contain something other than numbers")
        samples = np.fromstring(text, np.int64, sep=" ")[: count - filled] if text.strip() else np.empty(0, np.int64)
        pixels[filled : filled + len(samples)] = scale_samples(samples, header.sample_max)
        filled += len(samples)
        at = end
    if filled < count:
        raise broken_image(f"PPM: the file is truncated: {filled} of {count} samples")
    return pixels.reshape(shape)
