"""PBM, PGM, PPM and PAM, plain and raw, by numpy: Pillow's decoder takes seconds a megapixel for all but 8 bits."""

import io
import re
from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

PLAIN_BITMAP, PLAIN_GRAY, PLAIN_RGB, BITMAP, RAW_GRAY, RAW_RGB, ARBITRARY = (b"P%d" % n for n in range(1, 8))
PLAIN = (PLAIN_BITMAP, PLAIN_GRAY, PLAIN_RGB)
CHANNELS = {PLAIN_BITMAP: 1, BITMAP: 1, PLAIN_GRAY: 1, RAW_GRAY: 1, PLAIN_RGB: 3, RAW_RGB: 3}
TUPLES = {
    **{(name, depth): depth for depth, name in enumerate((b"GRAYSCALE", b"GRAYSCALE_ALPHA", b"RGB", b"RGB_ALPHA"), 1)},
    **{(b"BLACKANDWHITE", 1): 1, (b"BLACKANDWHITE_ALPHA", 2): 2},
    **{(b"", depth): depth for depth in (1, 2, 3, 4)},
}
"""The channels of a PAM by its TUPLTYPE and DEPTH; without a type they are taken for the usual ones."""
BLANK = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])*")
NUMBER = re.compile(rb"[0-9]{1,10}(?![0-9])")
COMMENT = re.compile(rb"#[^\n\r]*")
MAX_HEADER_BYTES = 100_000
TEXT_BYTES = 8_000_000
"""Of a plain file, what is parsed at a time."""


@dataclass(frozen=True)
class Header:
    """The header of one image."""

    magic: bytes
    width: int
    height: int
    channels: int
    most: int
    """The sample that stands for white."""
    pixels_at: int

    @property
    def stored(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of the samples in a raw file."""
        if self.magic == BITMAP:
            return (self.height, (self.width + 7) // 8), np.dtype(np.uint8)
        shape = (self.height, self.width, self.channels)
        return shape if self.channels > 1 else shape[:2], np.dtype(">u2" if self.most > 255 else "u1")

    @property
    def end(self) -> int:
        """The place behind the samples in a raw file."""
        shape, dtype = self.stored
        size = dtype.itemsize
        for side in shape:
            size *= side
        return self.pixels_at + size


def header_at(data: bytes, start: int) -> Header:
    """The header of the image that begins at `start`.

    Raises: ImageError.
    """
    magic = data[start : start + 2]
    if magic in (b"Pf", b"PF"):
        raise ImageError("UnsupportedMode", "floating-point samples")
    if magic == ARBITRARY:
        return pam_header(data, start)
    at, numbers = start + 2, []
    for _ in range(2 if magic in (PLAIN_BITMAP, BITMAP) else 3):
        blank = BLANK.match(data, at, start + MAX_HEADER_BYTES)
        number = NUMBER.match(data, blank.end() if blank else at, start + MAX_HEADER_BYTES)
        if not number or number.start() == at:
            raise ImageError("BrokenImage", f"the header of a {magic.decode('latin-1')} image is damaged")
        numbers.append(int(number[0]))
        at = number.end()
    width, height, most = (*numbers, 1)[:3]
    # One blank, which may stand behind a comment, ends the header of a raw image.
    if data[at : at + 1] == b"#":
        at = COMMENT.match(data, at).end()  # type: ignore[union-attr]
    return checked(Header(magic, width, height, CHANNELS[magic], most, at + 1))


def pam_header(data: bytes, start: int) -> Header:
    """The header of a PAM, which has a name and a value on each line.

    Raises: ImageError.
    """
    end = data.find(b"\nENDHDR\n", start, start + MAX_HEADER_BYTES)
    values: dict[bytes, bytes] = {}
    for line in data[start + 2 : max(end, 0)].split(b"\n"):
        name, _, value = line.strip().partition(b" ")
        if name and not name.startswith(b"#"):
            values[name] = b" ".join((values.get(name, b""), value.strip())).strip()
    try:
        width, height, depth, most = (int(values[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    except (KeyError, ValueError):
        raise ImageError("BrokenImage", "the header of a PAM (P7) is damaged") from None
    kind = values.get(b"TUPLTYPE", b"")
    if (kind, depth) not in TUPLES:
        raise ImageError("UnsupportedFormat", f"a PAM of type {kind.decode('latin-1')!r} with {depth} channels; convert it")
    return checked(Header(ARBITRARY, width, height, depth, most, end + 8))


def checked(header: Header) -> Header:
    """The header itself. Raises: ImageError for numbers that no image has."""
    if not header.width or not header.height or not 0 < header.most < 65536:
        name, size = header.magic.decode(), f"{header.width}×{header.height}"
        raise ImageError("BrokenImage", f"a {name} image of {size} pixels with a maximum of {header.most}")
    return header


def read_ppm_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the header. Raises: ImageError."""
    header = header_at(stream.getvalue(), 0)
    return header.width, header.height


def read_ppm(stream: io.BytesIO) -> StoredImage:
    """The first image of a file.

    Raises: ImageError.
    """
    data = stream.getvalue()
    header = header_at(data, 0)
    if header.magic == PLAIN_BITMAP:
        pixels = plain_bits(data, header)
    elif header.magic in PLAIN:
        pixels = plain_numbers(data, header)
    else:
        pixels = raw(data, header)
    bilevel = header.most == 1 and header.channels == 1
    return StoredImage(
        pixels=pixels,
        format="PPM",
        mode="L" if header.channels < 3 else "RGB",
        has_alpha=header.channels in (2, 4),
        bit_depth=1 if bilevel else max(8, header.most.bit_length()),
        frames=1 if header.magic in PLAIN else 1 + count_images(data, header.end),
    )


def count_images(data: bytes, at: int) -> int:
    """How many whole raw images follow from the place `at` on."""
    count = 0
    while data[at : at + 1] == b"P":
        try:
            at = header_at(data, at).end
        except (ImageError, KeyError):
            break
        count += at <= len(data)
    return count


def raw(data: bytes, header: Header) -> np.ndarray:
    """(H,W) or (H,W,C) uint8 of a raw image, scaled to the whole range.

    Raises: ImageError.
    """
    if header.end > len(data):
        raise ImageError("BrokenImage", f"{header.end - len(data)} of {header.end} bytes are missing")
    shape, dtype = header.stored
    stored = np.frombuffer(data, dtype, (header.end - header.pixels_at) // dtype.itemsize, header.pixels_at).reshape(shape)
    if header.magic == BITMAP:
        # A bit of 1 is black.
        return (1 - np.unpackbits(stored, axis=1, count=header.width)) * np.uint8(255)
    if header.most == 255:
        return stored
    pixels = np.empty(shape, np.uint8)
    for rows in row_strips(header.width, header.height):
        pixels[rows] = scaled(stored[rows], header.most)
    return pixels


def scaled(samples: np.ndarray, most: int) -> np.ndarray:
    """Samples of 0 to `most` as uint8, rounded. Raises: ImageError for a sample above `most`."""
    if samples.size and (largest := int(samples.max())) > most:
        raise ImageError("BrokenImage", f"a sample of {largest} is over the header's maximum of {most}")
    return rescale(samples, most, 255).astype(np.uint8)


def plain_bits(data: bytes, header: Header) -> np.ndarray:
    """(H,W) uint8 of digits, with or without blanks between them. Raises: ImageError."""
    text = np.frombuffer(COMMENT.sub(b"", data[header.pixels_at :]), np.uint8)
    digits = text[(text == ord("0")) | (text == ord("1"))][: header.width * header.height]
    if len(digits) < header.width * header.height:
        raise ImageError("BrokenImage", f"{len(digits)} samples of {header.width * header.height}")
    return ((ord("1") - digits) * np.uint8(255)).reshape(header.height, header.width)


def plain_numbers(data: bytes, header: Header) -> np.ndarray:
    """(H,W) or (H,W,C) uint8 of decimal numbers, scaled to the whole range. Raises: ImageError."""
    shape = header.stored[0]
    count = header.width * header.height * header.channels
    pixels, filled, at = np.empty(count, np.uint8), 0, header.pixels_at
    while filled < count and at < len(data):
        end = min(len(data), at + TEXT_BYTES)
        # A number or a comment is not split: on to the next line, or the next blank where lines are long.
        line = re.compile(rb"[\n\r]").search(data, end, end + TEXT_BYTES)
        end = line.end() if line else len(data)
        text = COMMENT.sub(b"", data[at:end])
        if text.translate(None, b"0123456789 \t\n\v\f\r"):
            raise ImageError("BrokenImage", "something other than numbers stands among the samples")
        samples = np.fromstring(text, np.int64, sep=" ")[: count - filled] if text.strip() else np.empty(0, np.int64)
        pixels[filled : filled + len(samples)] = scaled(samples, header.most)
        filled += len(samples)
        at = end
    if filled < count:
        raise ImageError("BrokenImage", f"{filled} samples of {count}")
    return pixels.reshape(shape)
