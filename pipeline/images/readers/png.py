"""PNG: chunks are checked here, and what is needed for the pixels goes to libpng as a new, minimal file.

Pillow loses the transparent colour of gray with 2, 4 or 16 bits and of 16-bit RGB, drops the low byte of 16-bit samples
instead of rounding, does not check the checksum of pixels, and refuses a picture for a chunk of text that is too
large for it.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import imagecodecs
import numpy as np

from imagemill.pipeline.images.colour import SRGB, ColourSpace, cicp
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.pillow import orientation_in
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import expand_video_range

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
ANCILLARY = 0x20
"""The bit of a chunk's first letter that says that a picture can be shown without the chunk."""
COLOUR_CHUNKS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
XMP_KEYWORD = b"XML:com.adobe.xmp"
EXIF_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1")
UNREADABLE = b"\0"
"""Stands for a profile that is damaged or too large."""
METRE, METRES_PER_INCH = 1, 0.0254
MAX_TEXTS_CHARACTERS = 4_000_000
MAX_TEXT_BYTES, MAX_PROFILE_BYTES = 1_000_000, 4_000_000
"""What is unpacked of a compressed chunk at most. A larger one is left out, and the picture is read without it."""


@dataclass(frozen=True)
class Header:
    """The chunk IHDR."""

    chunk: bytes
    width: int
    height: int
    bits: int
    colour: int


@dataclass
class Chunks:
    """What the chunks of a file say, without the pixels."""

    header: Header
    palette: bytes | None = None
    transparency: bytes | None = None
    colours: dict[bytes, bytes] = field(default_factory=dict)
    damaged_colours: bool = False
    exif: bytes | None = None
    texts: dict[bytes, str] = field(default_factory=dict)
    """By keyword, at most MAX_TEXTS_CHARACTERS together."""
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    animation_frames: int = 0
    default_is_frame: bool = False
    """Whether the picture is the first frame of the animation."""
    pixels: list[memoryview] = field(default_factory=list)
    """Whole IDAT chunks."""

    @property
    def frames(self) -> int:
        return max(1, self.animation_frames + (self.animation_frames > 0 and not self.default_is_frame))


def read_png_size(stream: io.BytesIO) -> tuple[int, int]:
    """(width, height) by the first chunk.

    Raises: ImageError for a PNG in Apple's own variant, and one that is broken.
    """
    header = header_of(stream.getvalue()[:64])
    return header.width, header.height


def header_of(head: bytes) -> Header:
    """The first chunk of a file, by its first 64 bytes.

    Raises: ImageError.
    """
    if head[12:16] == b"CgBI":
        raise ImageError("UnsupportedFormat", "a PNG in Apple's variant CgBI is not supported; convert it")
    length, kind, width, height, bits, colour, *methods, crc = struct.unpack_from(">I4s2I5BI", head, 8)
    if kind != b"IHDR" or length != 13 or crc != zlib.crc32(head[12:29]):
        raise ImageError("BrokenImage", "the first chunk of a PNG, IHDR, is missing or damaged")
    if bits not in DEPTHS.get(colour, ()) or any(method > most for method, most in zip(methods, (0, 0, 1), strict=True)):
        raise ImageError("BrokenImage", f"no PNG has {bits} bits, colour type {colour} and methods {methods}")
    if not width or not height:
        raise ImageError("BrokenImage", f"a PNG of {width}×{height} pixels")
    return Header(head[8:33], width, height, bits, colour)


def walk(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """The chunks after the first: (type, whole chunk, whether it is intact). Ends with the first that is cut."""
    view, at = memoryview(data), 33
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        chunk = view[at:end]
        intact = end <= len(data) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        yield kind, chunk, intact
        if end > len(data) or kind == b"IEND":
            return
        at = end


def read_chunks(data: bytes) -> Chunks:
    """Read and check the chunks of a file.

    A file that ends after its pixels is whole for us. Of damaged chunks only those count that decide how the picture looks.

    Raises: ImageError.
    """
    chunks = Chunks(header_of(data[:64]))
    for kind, chunk, intact in walk(data):
        if kind == b"IDAT" and intact:
            chunks.pixels.append(chunk)
        elif chunks.pixels and (not intact or kind == b"IEND"):
            break
        elif not intact and (not kind[0] & ANCILLARY or kind == b"tRNS"):
            raise ImageError("BrokenImage", f"PNG: the chunk {str(kind)[2:-1]} is damaged or cut off: restore the file")
        elif not intact:
            chunks.damaged_colours |= kind in COLOUR_CHUNKS
        else:
            take(chunks, kind, bytes(chunk[8:-4]) if kind not in ANIMATION_CHUNKS else bytes(chunk[8:16]))
    if not chunks.pixels:
        raise ImageError("BrokenImage", "a PNG without pixels (no chunk IDAT)")
    return chunks


def take(chunks: Chunks, kind: bytes, content: bytes) -> None:
    """Note what an intact chunk says.

    Raises: ImageError for a chunk that a picture cannot be read without, and that we do not know.
    """
    before_pixels = not chunks.pixels
    if kind == b"PLTE":
        chunks.palette = content
    elif kind == b"tRNS" and before_pixels:
        chunks.transparency = content
    elif kind in COLOUR_CHUNKS and before_pixels:
        chunks.colours.setdefault(kind, content)
    elif kind == b"eXIf":
        chunks.exif = chunks.exif or content
    elif kind in (b"tEXt", b"zTXt", b"iTXt"):
        keyword, _, packed = content.partition(b"\0")
        take_text(chunks, keyword, unpacked_text(kind, packed) or b"", "utf-8" if kind == b"iTXt" else "latin-1")
    elif kind == b"pHYs" and len(content) == 9 and content[8] == METRE:
        right, down = struct.unpack_from(">II", content)
        chunks.dpi = (right * METRES_PER_INCH, down * METRES_PER_INCH) if right and down else None
    elif kind == b"acTL" and before_pixels and len(content) == 8:
        chunks.animation_frames = int.from_bytes(content[:4], "big")
    elif kind == b"fcTL" and before_pixels:
        chunks.default_is_frame = True
    elif not kind[0] & ANCILLARY and kind not in (b"IHDR", b"IEND"):
        raise ImageError(
            "UnsupportedFormat", f"a PNG with the chunk {kind!r}, which no standard defines and which is critical"
        )


def take_text(chunks: Chunks, keyword: bytes, text: bytes, encoding: str) -> None:
    """Note a text, unless it is too large, or one too many."""
    if keyword == XMP_KEYWORD:
        chunks.xmp = chunks.xmp or text or None
        return
    room = MAX_TEXTS_CHARACTERS - sum(map(len, chunks.texts.values()))
    if keyword and text and len(text) <= min(room, MAX_TEXT_BYTES):
        chunks.texts[keyword] = text.decode(encoding, "replace")


def unpacked(content: bytes, most: int) -> bytes | None:
    """A zlib stream of at most `most` bytes; None for a larger or damaged one."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(content, most)
    except zlib.error:
        return None
    return data if stream.eof else None


def unpacked_text(kind: bytes, content: bytes) -> bytes | None:
    """The text of a chunk, behind its keyword; None where it is too large or damaged."""
    if kind == b"tEXt":
        return content
    if kind == b"zTXt":
        return unpacked(content[1:], MAX_TEXT_BYTES)
    packed, (_, _, text) = content[:1] == b"\1", (*content[2:].split(b"\0", 2), b"", b"")[:3]
    return unpacked(text, MAX_TEXT_BYTES) if packed else text


def read_png(stream: io.BytesIO) -> StoredImage:
    """The picture of a file; of an animation the one that programs without animations show."""
    chunks = read_chunks(stream.getvalue())
    header = chunks.header
    clean = b"".join(minimal(chunks))
    # Of a large file there is no room for two copies and the pixels.
    chunks.pixels.clear()
    stream.seek(0)
    stream.truncate()
    pixels = imagecodecs.png_decode(clean)
    del clean
    has_alpha = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    profile, space, ignored = colours_of(chunks)
    if space and chunks.colours.get(b"cICP", b"")[3:] == b"\0":
        expand_video_range(pixels, has_alpha, 16 if pixels.dtype == np.uint16 else 8)
    exif = chunks.exif or exif_in_text(chunks.texts)
    return StoredImage(
        pixels=pixels,
        format="PNG",
        mode="L" if header.colour in (GRAY, GRAY_ALPHA) else "RGB",
        has_alpha=has_alpha,
        bit_depth=1 if (header.colour, header.bits) == (GRAY, 1) else max(8, header.bits),
        frames=chunks.frames,
        orientation=orientation_in(exif, chunks.xmp),
        profile=profile,
        exif=exif,
        xmp=chunks.xmp,
        text={keyword.decode("latin-1"): text for keyword, text in chunks.texts.items()},
        dpi=chunks.dpi,
        space=space,
        ignored=ignored,
    )


def minimal(chunks: Chunks) -> Iterator[bytes | memoryview]:
    """A file of the same pixels, palette and transparency, in parts."""
    header = chunks.header
    yield SIGNATURE + header.chunk
    levels = 1 << header.bits
    if header.colour == PALETTE:
        palette = chunks.palette
        if not palette or len(palette) % 3:
            raise ImageError("BrokenImage", "a PNG whose palette (PLTE) is missing or cut")
        # Browsers show colours that are not in the palette as black.
        yield chunk_of(b"PLTE", palette[: 3 * levels].ljust(3 * levels, b"\0"))
    if chunks.transparency is not None and (key := transparency_of(chunks)):
        yield chunk_of(b"tRNS", key)
    yield from chunks.pixels
    yield chunk_of(b"IEND", b"")


def transparency_of(chunks: Chunks) -> bytes | None:
    """The chunk tRNS as libpng takes it; None where it does not fit the pixels, so that nothing is transparent."""
    content, header = chunks.transparency or b"", chunks.header
    if header.colour == PALETTE:
        return content if 0 < len(content) <= len(chunks.palette or b"") // 3 else None
    samples = {GRAY: 1, RGB: 3}.get(header.colour, 0)
    if not samples or len(content) != 2 * samples:
        return None
    # The bits above the depth are to be ignored (PNG, 11.3.1.1).
    key = struct.unpack(f">{samples}H", content)
    return struct.pack(f">{samples}H", *(value & (1 << header.bits) - 1 for value in key))


def chunk_of(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif_in_text(texts: dict[bytes, str]) -> bytes | None:
    """EXIF as ImageMagick writes it: a name, a number of bytes and hexadecimal digits, on lines."""
    for keyword in EXIF_KEYWORDS:
        lines = texts.get(keyword, "").split("\n")
        try:
            if exif := bytes.fromhex("".join(lines[3:])):
                return exif
        except ValueError:
            continue
    return None


def colours_of(chunks: Chunks) -> tuple[bytes | None, ColourSpace | None, str]:
    """(ICC profile, colour space, what is ignored).

    The order is that of the PNG standard, 3rd edition, 4.3: cICP, iCCP, sRGB, then gAMA and cHRM.
    """
    colours = chunks.colours
    if chunks.damaged_colours:
        return UNREADABLE, None, ""
    ignored = ""
    if (content := colours.get(b"cICP")) is not None:
        if len(content) == 4 and content[2] == 0 and content[3] <= 1:
            space, ignored = cicp(content[0], content[1])
            if space:
                return None, space, ignored
        else:
            ignored = "cICP that is not of RGB"
    if (content := colours.get(b"iCCP")) is not None:
        _, _, packed = content.partition(b"\0")
        return unpacked(packed[1:], MAX_PROFILE_BYTES) or UNREADABLE, None, ignored
    if b"sRGB" in colours:
        return None, None, ignored
    gamma = int.from_bytes(colours.get(b"gAMA", b""), "big")
    space = ColourSpace(SRGB, 100_000 / gamma, f"gamma {100_000 / gamma:.3g}") if gamma else ColourSpace()
    chromaticities = colours.get(b"cHRM", b"")
    if len(chromaticities) == 32:
        white_x, white_y, *rgb = (value / 100_000 for value in struct.unpack(">8I", chromaticities))
        space = replace(space, primaries=(*rgb, white_x, white_y), name=f"{space.name} with other primaries")
    return None, space, ignored
