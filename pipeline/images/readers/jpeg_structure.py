"""Parse the marker segments of a JPEG, and make a copy whose header every decoder accepts.

Source: ITU-T T.81, annex B.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imagemill.pipeline.images.errors import broken_image, check_dimensions, unsupported_format

SOI, EOI, SOS, DQT, DNL, DHT, COM, APP0, APP2, APP14 = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xC4, 0xFE, 0xE0, 0xE2, 0xEE
ICC_SIGNATURE = b"ICC_PROFILE\0"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
HUFFMAN_SEQUENTIAL, SEQUENTIAL, PROGRESSIVE, ARITHMETIC = (0xC0, 0xC1), (0xC0, 0xC1, 0xC9), (0xC2, 0xCA), (0xC9, 0xCA)
UNSUPPORTED_MARKERS = {0xF7: "JPEG-LS", 0xCB: "lossless JPEG with arithmetic coding"} | dict.fromkeys(
    (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"
)
END_OF_IMAGE = bytes((0xFF, EOI))
MARKER_IN_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker that ends entropy-coded data: neither a stuffed byte nor a restart marker."""
MARKERS_AFTER_SCAN = frozenset((DHT, 0xCC, SOS, DQT, DNL, 0xDD, COM, *range(0xE0, 0xF0)))
COEFFICIENTS = 64
"""DCT coefficients per block."""
MAX_SIDE = 65_500
"""The largest width and height in pixels that libjpeg supports; the standard allows 65,535."""


class Segment(NamedTuple):
    """A marker segment, as offsets in the file."""

    marker: int
    begin: int
    """Offset of its first fill byte or, without fill bytes, of its marker."""
    start: int
    """Offset of its content, after the length."""
    end: int


class Scan(NamedTuple):
    """The header of a scan."""

    components: tuple[tuple[int, int], ...]
    """For each component, its identifier and the byte that selects its two Huffman tables."""
    first: int
    """Index of the first coefficient; the predictor in a lossless JPEG."""
    last: int
    high_bit: int
    low_bit: int
    """The lowest bit of the coefficients that this scan contains."""


@dataclass(frozen=True)
class Structure:
    """The header of a JPEG: everything before its first scan."""

    segments: list[Segment]
    """The segments up to and including the header of the first scan."""
    frame_marker: int
    """The marker of the frame header, which identifies the coding process."""
    bits: int
    """Bits per sample."""
    width: int
    height: int
    components: tuple[tuple[int, int], ...]
    """For each component, its identifier and the byte with its two sampling factors."""
    has_stray_bytes: bool
    """Whether there are bytes between the segments that belong to none of them."""

    @property
    def first_scan(self) -> Segment:
        """The header of the first scan."""
        return self.segments[-1]

    @property
    def minimum_coded_units(self) -> int:
        """How many minimum coded units (MCU) the image has."""
        is_single = len(self.components) == 1
        across = 8 * (1 if is_single else max(sampling >> 4 for _, sampling in self.components))
        down = 8 * (1 if is_single else max(sampling & 15 for _, sampling in self.components))
        return -(-self.width // max(1, across)) * -(-self.height // max(1, down))


def parse_structure(data: bytes) -> Structure:
    """Parse a JPEG up to its first scan. Like libjpeg, skip bytes that belong to no segment.

    Raises:
        ImageError: with the class UnsupportedFormat for a coding process that is not supported, or BrokenImage if
            there is no frame or no scan.
    """
    segments: list[Segment] = []
    frame: Segment | None = None
    has_stray_bytes = False
    position = 2
    while (begin := data.find(b"\xff", position)) >= 0:
        at = begin
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = data[at] if at < len(data) else 0
        has_stray_bytes |= begin > position
        position = at + 1
        length = int.from_bytes(data[position : position + 2], "big")
        if marker in (SOI, EOI):
            break
        if marker < 0xC0 or 0xD0 <= marker <= 0xD7 or length < 2 or position + length > len(data):
            has_stray_bytes = True
            continue
        if marker in UNSUPPORTED_MARKERS:
            raise unsupported_format(UNSUPPORTED_MARKERS[marker])
        segment = Segment(marker, begin, position + 2, position + length)
        position = segment.end
        segments.append(segment)
        if marker in FRAME_MARKERS:
            if frame:
                raise broken_image("JPEG: the file has two frame headers")
            frame = segment
        elif marker == SOS:
            if not frame or segment.end - segment.start < 4:
                break
            return parse_frame(data, segments, frame, has_stray_bytes)
    raise broken_image("JPEG: the file ends, or is damaged, before its image data")


def parse_frame(data: bytes, segments: list[Segment], frame: Segment, has_stray_bytes: bool) -> Structure:
    """Parse the frame header of a JPEG.

    Raises:
        ImageError: with the class BrokenImage or UnsupportedFormat.
    """
    content = data[frame.start : frame.end]
    if len(content) < 6 or len(content) < 6 + 3 * content[5] or not content[5]:
        raise broken_image("JPEG: the frame header is damaged")
    bits, height, width, count = struct.unpack(">BHHB", content[:6])
    components = tuple((content[6 + 3 * n], content[7 + 3 * n]) for n in range(count))
    if not height:
        height = find_height(data, segments[-1])
    check_dimensions("JPEG", width, height)
    if max(width, height) > MAX_SIDE:
        raise unsupported_format(f"JPEG of {width}×{height} pixels, more than {MAX_SIDE:,} per side,")
    if count not in (1, 3, 4):
        raise unsupported_format(f"JPEG with {count} components")
    return Structure(segments, frame.marker, bits, width, height, components, has_stray_bytes)


def find_height(data: bytes, first_scan: Segment) -> int:
    """Return the height in the DNL segment after the first scan; 0 if there is none.

    It is needed if the frame header has no height.
    """
    for segment in iterate_segments(data, first_scan):
        if segment.marker == DNL:
            return int.from_bytes(data[segment.start : segment.start + 2], "big")
    return 0


def iterate_segments(data: bytes, first_scan: Segment) -> Iterator[Segment]:
    """Yield the first scan and all later segments, up to the end marker or an invalid marker.

    The last segment always has the marker EOI, even if the end marker is missing. Its `begin` is the end of the image data.
    """
    yield first_scan
    position = first_scan.end
    while match := MARKER_IN_DATA.search(data, position):
        marker = data[match.end() - 1]
        length = int.from_bytes(data[match.end() : match.end() + 2], "big")
        if marker not in MARKERS_AFTER_SCAN or length < 2 or match.end() + length > len(data):
            yield Segment(EOI, match.start(), match.end(), match.end())
            return
        segment = Segment(marker, match.start(), match.end() + 2, match.end() + length)
        yield segment
        position = segment.end
    yield Segment(EOI, len(data), len(data), len(data))


def parse_scan(data: bytes, segment: Segment) -> Scan | None:
    """Parse the header of a scan; None if it is damaged."""
    content = data[segment.start : segment.end]
    if not content or len(content) < 4 + 2 * content[0]:
        return None
    first, last, bits = content[1 + 2 * content[0] :][:3]
    components = tuple((content[1 + 2 * n], content[2 + 2 * n]) for n in range(content[0]))
    return Scan(components, first, last, bits >> 4, bits & 15)


def has_single_huffman_scan(data: bytes, structure: Structure) -> bool:
    """Return whether the first scan contains the whole image, Huffman coded."""
    scan = parse_scan(data, structure.first_scan)
    has_all_components = scan is not None and len(scan.components) == len(structure.components)
    return has_all_components and structure.frame_marker in HUFFMAN_SEQUENTIAL


def lacks_scans(data: bytes, structure: Structure) -> bool:
    """Return whether bits of coefficients, or a whole component, are in none of the scans.

    libjpeg does not report such damage.
    """
    if has_single_huffman_scan(data, structure):
        return False
    lowest_bits = {identifier: [COEFFICIENTS] * COEFFICIENTS for identifier, _ in structure.components}
    is_progressive = structure.frame_marker in PROGRESSIVE
    for segment in iterate_segments(data, structure.first_scan):
        if segment.marker == SOS and (scan := parse_scan(data, segment)):
            coefficients = range(scan.first, scan.last + 1) if is_progressive else range(COEFFICIENTS)
            for identifier, _ in scan.components:
                for coefficient in coefficients if identifier in lowest_bits else ():
                    lowest_bits[identifier][coefficient % COEFFICIENTS] = scan.low_bit if is_progressive else 0
    return any(any(bits) for bits in lowest_bits.values())


def find_table_damage(data: bytes, structure: Structure) -> str | None:
    """Describe a damaged table that libjpeg accepts without a warning; None if there is none."""
    for segment in structure.segments:
        content = data[segment.start : segment.end]
        if segment.marker == DQT:
            at = 0
            while at < len(content):
                is_wide = content[at] >> 4 > 0
                end = at + 1 + COEFFICIENTS * (2 if is_wide else 1)
                steps: Sequence[int] = content[at + 1 : end]
                if is_wide:
                    steps = struct.unpack(f">{len(steps) // 2}H", content[at + 1 : at + 1 + len(steps) // 2 * 2])
                if 0 in steps:
                    return "a quantization table contains zeros"
                at = end
        elif segment.marker == DHT:
            for _, symbols in iterate_huffman_tables(content):
                if len(set(symbols)) < len(symbols):
                    return "a Huffman table contains a symbol twice"
    return None


def iterate_huffman_tables(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tables of a DHT segment.

    Each is a byte with its class and number, and its symbols by increasing code length.
    """
    at = 0
    while at + 17 <= len(content):
        count = sum(content[at + 1 : at + 17])
        yield content[at], content[at + 17 : at + 17 + count]
        at += 17 + count


def has_zero_fill(data: bytes, structure: Structure, length: int = 256) -> bool:
    """Return whether a single Huffman scan contains zero bytes that no encoder writes.

    Zero bits are the first code of a Huffman table. If that code is a coefficient rather than the end of a block, a
    long run of zeros would mean hundreds of equal coefficients in sequence.
    """
    start = structure.first_scan.end
    zeros = data.find(bytes(length), start)
    scan = parse_scan(data, structure.first_scan)
    if zeros < 0 or not scan or not has_single_huffman_scan(data, structure):
        return False
    contents = (data[segment.start : segment.end] for segment in structure.segments if segment.marker == DHT)
    tables = dict(table for content in contents for table in iterate_huffman_tables(content))
    first_symbols = (tables.get(0x10 | numbers & 15, b"")[:1] for _, numbers in scan.components)
    if not any(symbol.strip(b"\0") for symbol in first_symbols):
        return False
    end = MARKER_IN_DATA.search(data, start)
    return end is None or zeros < end.start()


def find_incomplete_profile(data: bytes, structure: Structure) -> bytes | None:
    """Return the parts of an ICC profile that lacks a segment or repeats one, else None."""
    contents = (data[s.start : s.end] for s in structure.segments if s.marker == APP2)
    signature_bytes = len(ICC_SIGNATURE)
    parts = sorted(c[signature_bytes:] for c in contents if c.startswith(ICC_SIGNATURE) and len(c) > signature_bytes + 2)
    numbers = [bytes((number + 1, len(parts))) for number in range(len(parts))]
    return None if [part[:2] for part in parts] == numbers else b"".join(part[2:] for part in parts)


def repair_header(data: bytes, structure: Structure) -> bytes:
    """Return a copy of a JPEG whose header causes no warning of libjpeg.

    libjpeg reports only its first warning, and a warning about the header would hide one about image data. Removed
    are bytes that belong to no segment, application segments that are too short, and the segments of an incomplete
    profile. Replaced by the values that libjpeg assumes are an unknown version of JFIF, an unknown Adobe colour
    transform, and scan parameters that a sequential JPEG must not have (some Samsung phones write them). A height
    that follows the first scan moves into the frame header.

    Returns:
        `data` itself if nothing has to change.
    """
    parts = [data[:2]]
    drops_profile = find_incomplete_profile(data, structure) is not None
    for segment in structure.segments:
        content = data[segment.start : segment.end]
        is_profile = segment.marker == APP2 and content.startswith(ICC_SIGNATURE)
        if is_too_short(segment.marker, content) or (drops_profile and is_profile):
            continue
        head = struct.pack(">BBH", 0xFF, segment.marker, len(content) + 2)
        parts.append(head + repair_segment(segment.marker, content, structure))
    header = b"".join(parts)
    if header == data[: len(header)] and len(header) == structure.first_scan.end:
        return data
    return header + data[structure.first_scan.end :]


def is_too_short(marker: int, content: bytes) -> bool:
    """Return whether an application segment ends before the fields that decoders expect."""
    for app_marker, signature, minimum in ((APP0, b"JFIF\0", 12), (APP2, ICC_SIGNATURE, 15), (APP14, b"Adobe", 12)):
        if marker == app_marker and content.startswith(signature[:4]) and len(content) < minimum:
            return True
    return not content and marker >= APP0


def repair_segment(marker: int, content: bytes, structure: Structure) -> bytes:
    """Return the content of a segment in a form that decoders accept without a warning."""
    if marker == APP0 and content.startswith(b"JFIF\0") and content[5] != 1:
        return content[:5] + b"\1\1" + content[7:]
    if marker == APP14 and content.startswith(b"Adobe"):
        assumed_transform = 2 if len(structure.components) == 4 else 1
        if content[11] not in (0, assumed_transform):
            return content[:11] + bytes([assumed_transform]) + content[12:]
    if marker in FRAME_MARKERS and not any(content[1:3]):
        return content[:1] + struct.pack(">H", structure.height) + content[3:]
    if marker == SOS and structure.frame_marker in SEQUENTIAL:
        return content[:-3] + b"\0\x3f\0"
    return content
