"""PNG: chunks are checked here, and libpng decodes a new, minimal file.

The minimal file contains only the chunks that pixels need. Pillow loses the transparent colour of 2-bit, 4-bit and
16-bit gray and of 16-bit RGB, truncates 16-bit samples instead of rounding them, does not verify the checksum of
pixels, and refuses an image because a text chunk is too large.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import imagecodecs
import numpy as np

from imagemill.pipeline.images.colour import SRGB, ColourSpace, parse_cicp
from imagemill.pipeline.images.errors import broken_image, check_dimensions, unsupported_format
from imagemill.pipeline.images.readers.pillow import parse_orientation
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import expand_video_range

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
BIT_DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
MAX_METHODS = (0, 0, 1)
"""The largest valid method of compression, filter and interlacing."""
ANCILLARY = 0x20
"""The bit of a chunk type's first letter that marks a chunk as optional."""
COLOUR_CHUNKS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
XMP_KEYWORD = b"XML:com.adobe.xmp"
EXIF_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1")
UNREADABLE_PROFILE = b"\0"
"""Stands for a profile that is damaged or too large."""
METRE, METRES_PER_INCH = 1, 0.0254
MAX_TEXTS_CHARACTERS = 4_000_000
MAX_TEXT_BYTES, MAX_PROFILE_BYTES = 1_000_000, 4_000_000
"""Limits of a decompressed chunk. A larger chunk is skipped."""


@dataclass(frozen=True)
class Header:
    """The chunk IHDR."""

    chunk: bytes
    width: int
    height: int
    bits: int
    colour_type: int


@dataclass
class Chunks:
    """The content of the chunks of a file, with the pixels still compressed."""

    header: Header
    palette: bytes | None = None
    transparency: bytes | None = None
    colours: dict[bytes, bytes] = field(default_factory=dict)
    """The content of COLOUR_CHUNKS, by chunk type."""
    has_damaged_colours: bool = False
    exif: bytes | None = None
    texts: dict[bytes, str] = field(default_factory=dict)
    """By keyword, at most MAX_TEXTS_CHARACTERS in total."""
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    animation_frames: int = 0
    is_default_in_animation: bool = False
    """Whether the default image is the first frame of the animation."""
    pixels: list[memoryview] = field(default_factory=list)
    """Complete IDAT chunks."""

    @property
    def frames(self) -> int:
        """The number of frames, including a default image that is not part of the animation."""
        return max(1, self.animation_frames + (self.animation_frames > 0 and not self.is_default_in_animation))


def read_png_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) from the first chunk."""
    header = parse_header(stream.getvalue()[:64])
    return header.width, header.height


def parse_header(head: bytes) -> Header:
    """Parse the first chunk of a file.

    Args:
        head: the first 64 bytes of the file.

    Raises:
        ImageError: with the class UnsupportedFormat for Apple's variant of PNG, or BrokenImage.
    """
    if head[12:16] == b"CgBI":
        raise unsupported_format("PNG in Apple's variant CgBI")
    length, chunk_type, width, height, bits, colour_type, *methods, crc = struct.unpack_from(">I4s2I5BI", head, 8)
    if chunk_type != b"IHDR" or length != 13 or crc != zlib.crc32(head[12:29]):
        raise broken_image("PNG: the first chunk (IHDR) is missing or damaged")
    are_methods_valid = all(method <= maximum for method, maximum in zip(methods, MAX_METHODS, strict=True))
    if bits not in BIT_DEPTHS.get(colour_type, ()) or not are_methods_valid:
        raise broken_image(f"PNG: the header (IHDR) is invalid: {bits} bits, colour type {colour_type}, methods {methods}")
    check_dimensions("PNG", width, height)
    return Header(head[8:33], width, height, bits, colour_type)


def iterate_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield the chunks after the first: (type, complete chunk, whether it is intact).

    Stops at a truncated chunk.
    """
    view, at = memoryview(data), 33
    while at + 8 <= len(data):
        length, chunk_type = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        chunk = view[at:end]
        is_intact = end <= len(data) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        yield chunk_type, chunk, is_intact
        if end > len(data) or chunk_type == b"IEND":
            return
        at = end


def read_chunks(data: bytes) -> Chunks:
    """Read and check the chunks of a file.

    A file that ends after its pixels counts as complete. Damaged chunks that do not affect the image are skipped.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    chunks = Chunks(parse_header(data[:64]))
    for chunk_type, chunk, is_intact in iterate_chunks(data):
        is_optional = chunk_type[0] & ANCILLARY and chunk_type != b"tRNS"
        if chunk_type == b"IDAT" and is_intact:
            chunks.pixels.append(chunk)
        elif chunks.pixels and (not is_intact or chunk_type == b"IEND"):
            break
        elif not is_intact and not is_optional:
            raise broken_image(f"PNG: the chunk {str(chunk_type)[2:-1]} is damaged or truncated")
        elif not is_intact:
            chunks.has_damaged_colours |= chunk_type in COLOUR_CHUNKS
        else:
            # Frames of an animation may be large, and only the beginning of their chunks is needed.
            content = chunk[8:16] if chunk_type in ANIMATION_CHUNKS else chunk[8:-4]
            add_chunk(chunks, chunk_type, bytes(content))
    if not chunks.pixels:
        raise broken_image("PNG: the file has no pixels (no chunk IDAT)")
    return chunks


def add_chunk(chunks: Chunks, chunk_type: bytes, content: bytes) -> None:
    """Add the content of an intact chunk to `chunks`.

    Raises:
        ImageError: with the class UnsupportedFormat, for an unknown chunk that is marked as necessary.
    """
    is_before_pixels = not chunks.pixels
    if chunk_type == b"PLTE":
        chunks.palette = content
    elif chunk_type == b"tRNS" and is_before_pixels:
        chunks.transparency = content
    elif chunk_type in COLOUR_CHUNKS and is_before_pixels:
        chunks.colours.setdefault(chunk_type, content)
    elif chunk_type == b"eXIf":
        chunks.exif = chunks.exif or content
    elif chunk_type in (b"tEXt", b"zTXt", b"iTXt"):
        keyword, _, text = content.partition(b"\0")
        add_text(chunks, keyword, decompress_text(chunk_type, text) or b"", "utf-8" if chunk_type == b"iTXt" else "latin-1")
    elif chunk_type == b"pHYs" and len(content) == 9 and content[8] == METRE:
        horizontal, vertical = struct.unpack_from(">II", content)
        has_dpi = horizontal and vertical
        chunks.dpi = (horizontal * METRES_PER_INCH, vertical * METRES_PER_INCH) if has_dpi else None
    elif chunk_type == b"acTL" and is_before_pixels and len(content) == 8:
        chunks.animation_frames = int.from_bytes(content[:4], "big")
    elif chunk_type == b"fcTL" and is_before_pixels:
        chunks.is_default_in_animation = True
    elif not chunk_type[0] & ANCILLARY and chunk_type not in (b"IHDR", b"IEND"):
        raise unsupported_format(f"PNG with the unknown critical chunk {str(chunk_type)[2:-1]}")


def add_text(chunks: Chunks, keyword: bytes, text: bytes, encoding: str) -> None:
    """Add a text to `chunks`, unless it is too large by itself or together with earlier texts."""
    if keyword == XMP_KEYWORD:
        chunks.xmp = chunks.xmp or text or None
        return
    remaining = MAX_TEXTS_CHARACTERS - sum(map(len, chunks.texts.values()))
    if keyword and text and len(text) <= min(remaining, MAX_TEXT_BYTES):
        chunks.texts[keyword] = text.decode(encoding, "replace")


def decompress(content: bytes, max_bytes: int) -> bytes | None:
    """Decompress a zlib stream; None if the result exceeds `max_bytes` or the stream is damaged."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(content, max_bytes)
    except zlib.error:
        return None
    return data if stream.eof else None


def decompress_text(chunk_type: bytes, content: bytes) -> bytes | None:
    """Return the text of a text chunk; None if it is too large or damaged.

    Args:
        chunk_type: tEXt, zTXt or iTXt.
        content: of the chunk, after the keyword and its zero byte.
    """
    if chunk_type == b"tEXt":
        return content
    if chunk_type == b"zTXt":
        return decompress(content[1:], MAX_TEXT_BYTES)
    is_compressed = content[:1] == b"\1"
    _, _, text = (*content[2:].split(b"\0", 2), b"", b"")[:3]
    return decompress(text, MAX_TEXT_BYTES) if is_compressed else text


def read_png(stream: io.BytesIO) -> StoredImage:
    """Decode a PNG. Of an animation, decode the default image."""
    chunks = read_chunks(stream.getvalue())
    header = chunks.header
    minimal_file = b"".join(build_minimal_file(chunks))
    # Release the file: memory must not hold two copies of a large file and its pixels.
    chunks.pixels.clear()
    stream.seek(0)
    stream.truncate()
    pixels = imagecodecs.png_decode(minimal_file)
    del minimal_file
    has_alpha = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    profile, colour_space, ignored_colours = choose_colours(chunks)
    is_video_range = chunks.colours.get(b"cICP", b"")[3:] == b"\0"
    if colour_space and is_video_range:
        expand_video_range(pixels, has_alpha, 16 if pixels.dtype == np.uint16 else 8)
    exif = chunks.exif or find_exif_in_texts(chunks.texts)
    return StoredImage(
        pixels=pixels,
        format="PNG",
        mode="L" if header.colour_type in (GRAY, GRAY_ALPHA) else "RGB",
        has_alpha=has_alpha,
        bit_depth=1 if (header.colour_type, header.bits) == (GRAY, 1) else max(8, header.bits),
        frames=chunks.frames,
        orientation=parse_orientation(exif, chunks.xmp),
        profile=profile,
        exif=exif,
        xmp=chunks.xmp,
        text={keyword.decode("latin-1"): text for keyword, text in chunks.texts.items()},
        dpi=chunks.dpi,
        colour_space=colour_space,
        ignored_colours=ignored_colours,
    )


def build_minimal_file(chunks: Chunks) -> Iterator[bytes | memoryview]:
    """Yield the parts of a PNG with only the header, palette, transparency and pixels.

    Raises:
        ImageError: with the class BrokenImage, if the palette is missing.
    """
    header = chunks.header
    yield SIGNATURE + header.chunk
    levels = 1 << header.bits
    if header.colour_type == PALETTE:
        palette = chunks.palette
        if not palette or len(palette) % 3:
            raise broken_image("PNG: the palette (PLTE) is missing or truncated")
        # Like browsers, show indices outside the palette as black.
        yield build_chunk(b"PLTE", palette[: 3 * levels].ljust(3 * levels, b"\0"))
    if chunks.transparency is not None and (content := check_transparency(chunks)):
        yield build_chunk(b"tRNS", content)
    yield from chunks.pixels
    yield build_chunk(b"IEND", b"")


def check_transparency(chunks: Chunks) -> bytes | None:
    """Return the content of tRNS in a form that libpng accepts; None to ignore it.

    It is ignored if it does not fit the pixels.
    """
    content, header = chunks.transparency or b"", chunks.header
    if header.colour_type == PALETTE:
        return content if 0 < len(content) <= len(chunks.palette or b"") // 3 else None
    samples = {GRAY: 1, RGB: 3}.get(header.colour_type, 0)
    if not samples or len(content) != 2 * samples:
        return None
    # Bits above the bit depth must be ignored (PNG, section 11.3.1.1).
    key = struct.unpack(f">{samples}H", content)
    return struct.pack(f">{samples}H", *(value & (1 << header.bits) - 1 for value in key))


def build_chunk(chunk_type: bytes, content: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + chunk_type + content + struct.pack(">I", zlib.crc32(chunk_type + content))


def find_exif_in_texts(texts: dict[bytes, str]) -> bytes | None:
    """Return EXIF that ImageMagick stored as a text.

    The text has lines with a name, a number of bytes, and hexadecimal digits.
    """
    for keyword in EXIF_KEYWORDS:
        lines = texts.get(keyword, "").split("\n")
        try:
            if exif := bytes.fromhex("".join(lines[3:])):
                return exif
        except ValueError:
            continue
    return None


def choose_colours(chunks: Chunks) -> tuple[bytes | None, ColourSpace | None, str]:
    """Choose the colour chunk that applies: cICP, iCCP, sRGB, or gAMA with cHRM.

    The order is that of PNG, 3rd edition, section 4.3.

    Returns:
        The ICC profile, the colour space, and what is ignored (see `StoredImage`).
    """
    colours = chunks.colours
    if chunks.has_damaged_colours:
        return UNREADABLE_PROFILE, None, ""
    ignored = ""
    if (content := colours.get(b"cICP")) is not None:
        if len(content) == 4 and content[2] == 0 and content[3] <= 1:
            space, ignored = parse_cicp(content[0], content[1])
            if space:
                return None, space, ignored
        else:
            ignored = "cICP that is not RGB"
    if (content := colours.get(b"iCCP")) is not None:
        _, _, compressed = content.partition(b"\0")
        return decompress(compressed[1:], MAX_PROFILE_BYTES) or UNREADABLE_PROFILE, None, ignored
    if b"sRGB" in colours:
        return None, None, ignored
    gamma = int.from_bytes(colours.get(b"gAMA", b""), "big")
    space = ColourSpace(SRGB, 100_000 / gamma, f"gamma {100_000 / gamma:.3g}") if gamma else ColourSpace()
    chromaticities = colours.get(b"cHRM", b"")
    if len(chromaticities) == 32:
        white_x, white_y, *rgb = (value / 100_000 for value in struct.unpack(">8I", chromaticities))
        space = replace(space, primaries=(*rgb, white_x, white_y), name=f"{space.name} with other primaries")
    return None, space, ignored
