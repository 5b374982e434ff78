"""The marker segments of a JPEG: its frame, its tables and its scans, and a copy of it that every decoder takes.

Source: ITU-T T.81, annex B.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imagemill.pipeline.images.errors import ImageError

SOI, EOI, SOS, DQT, DNL, DHT, COM, APP0, APP2, APP14 = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xC4, 0xFE, 0xE0, 0xE2, 0xEE
ICC = b"ICC_PROFILE\0"
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
HUFFMAN_SEQUENTIAL, SEQUENTIAL, PROGRESSIVE, ARITHMETIC = (0xC0, 0xC1), (0xC0, 0xC1, 0xC9), (0xC2, 0xCA), (0xC9, 0xCA)
UNSUPPORTED = {0xF7: "JPEG-LS", 0xCB: "lossless JPEG with arithmetic coding"} | dict.fromkeys(
    (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"
)
END_MARK = bytes((0xFF, EOI))
MARKER_IN_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker that ends entropy-coded data: neither a stuffed byte nor a restart marker."""
BETWEEN_SCANS = frozenset((DHT, 0xCC, SOS, DQT, DNL, 0xDD, COM, *range(0xE0, 0xF0)))
"""Segments that may follow the data of a scan."""
BLOCK = 64
LONGEST_SIDE = 65_500
"""Pixels a side of what libjpeg reads and writes, a little less than the standard's 65,535."""


@dataclass(frozen=True)
class Segment:
    """A marker with a length. Places are offsets in the file."""

    marker: int
    begin: int
    """Of its first fill byte, or of its marker."""
    start: int
    """Of its content, behind the length."""
    end: int


@dataclass(frozen=True)
class Scan:
    """What the header of a scan says."""

    components: tuple[tuple[int, int], ...]
    """The identifier of each component, and the byte with its two Huffman tables."""
    first: int
    """The first coefficient; the predictor in a lossless JPEG."""
    last: int
    high: int
    low: int
    """The lowest bit of the coefficients that this scan gives."""


@dataclass(frozen=True)
class Structure:
    """What a JPEG says before its pixels."""

    segments: list[Segment]
    """The segments up to and with the header of the first scan."""
    frame: int
    """The marker of the frame, which names the kind of coding."""
    bits: int
    width: int
    height: int
    components: tuple[tuple[int, int], ...]
    """The identifier of each component, and the byte with its two sampling factors."""
    has_foreign_bytes: bool
    """Whether bytes that belong to no segment lie between the segments."""

    @property
    def first_scan(self) -> Segment:
        return self.segments[-1]

    @property
    def blocks(self) -> int:
        """How many blocks of all components make up the picture (the minimum coded units of the standard)."""
        alone = len(self.components) == 1
        across = 8 * (1 if alone else max(sampling >> 4 for _, sampling in self.components))
        down = 8 * (1 if alone else max(sampling & 15 for _, sampling in self.components))
        return -(-self.width // max(1, across)) * -(-self.height // max(1, down))


def parse_structure(data: bytes) -> Structure:
    """Read the segments of a JPEG up to its first scan. Bytes that belong to no segment are passed over, as libjpeg does.

    Raises: ImageError with the class UnsupportedFormat for a kind of JPEG that no reader here takes; with BrokenImage where
        there is no frame and no scan.
    """
    segments: list[Segment] = []
    frame: Segment | None = None
    has_foreign_bytes = False
    place = 2
    while (begin := data.find(b"\xff", place)) >= 0:
        at = begin
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = data[at] if at < len(data) else 0
        has_foreign_bytes |= begin > place
        place = at + 1
        length = int.from_bytes(data[place : place + 2], "big")
        if marker in (SOI, EOI):
            break
        if marker < 0xC0 or 0xD0 <= marker <= 0xD7 or length < 2 or place + length > len(data):
            has_foreign_bytes = True
            continue
        if marker in UNSUPPORTED:
            raise ImageError("UnsupportedFormat", f"{UNSUPPORTED[marker]} is not supported; convert it")
        segment = Segment(marker, begin, place + 2, place + length)
        place = segment.end
        segments.append(segment)
        if marker in FRAMES:
            if frame:
                raise ImageError("BrokenImage", "the JPEG has two frame headers")
            frame = segment
        elif marker == SOS:
            if not frame or segment.end - segment.start < 4:
                break
            return structure_with(data, segments, frame, has_foreign_bytes)
    raise ImageError("BrokenImage", "the JPEG ends, or is damaged, before its picture data")


def structure_with(data: bytes, segments: list[Segment], frame: Segment, has_foreign_bytes: bool) -> Structure:
    """The structure of a JPEG with the segments of its header. Raises: ImageError."""
    content = data[frame.start : frame.end]
    if len(content) < 6 or len(content) < 6 + 3 * content[5] or not content[5]:
        raise ImageError("BrokenImage", "the frame header of the JPEG is damaged")
    bits, height, width, count = struct.unpack(">BHHB", content[:6])
    components = tuple((content[6 + 3 * n], content[7 + 3 * n]) for n in range(count))
    if not height:
        height = height_behind_scan(data, segments[-1])
    if not (width and height):
        raise ImageError("BrokenImage", f"the JPEG says that it has {width}×{height} pixels")
    if max(width, height) > LONGEST_SIDE:
        text = f"JPEG of more than {LONGEST_SIDE:,} pixels a side is not supported"
        raise ImageError("UnsupportedFormat", f"{text}, and this one has {width}×{height}; cut it into parts")
    if count not in (1, 3, 4):
        raise ImageError("UnsupportedFormat", f"JPEG with {count} components is not supported; convert it")
    return Structure(segments, frame.marker, bits, width, height, components, has_foreign_bytes)


def height_behind_scan(data: bytes, first_scan: Segment) -> int:
    """The height of a JPEG whose frame header has none: a DNL segment behind the first scan gives it. 0 without one."""
    for segment in segments_behind(data, first_scan):
        if segment.marker == DNL:
            return int.from_bytes(data[segment.start : segment.start + 2], "big")
    return 0


def segments_behind(data: bytes, first_scan: Segment) -> Iterator[Segment]:
    """The first scan and all segments behind it, to the end mark or the first marker that has no place there.

    The last one has the marker EOI, also where the end mark is missing; its `begin` is where the picture data ends.
    """
    yield first_scan
    place = first_scan.end
    while found := MARKER_IN_DATA.search(data, place):
        marker = data[found.end() - 1]
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        if marker not in BETWEEN_SCANS or length < 2 or found.end() + length > len(data):
            yield Segment(EOI, found.start(), found.end(), found.end())
            return
        segment = Segment(marker, found.start(), found.end() + 2, found.end() + length)
        yield segment
        place = segment.end
    yield Segment(EOI, len(data), len(data), len(data))


def scan_of(data: bytes, segment: Segment) -> Scan | None:
    """What the header of a scan says; None where it is damaged."""
    content = data[segment.start : segment.end]
    if not content or len(content) < 4 + 2 * content[0]:
        return None
    first, last, bits = content[1 + 2 * content[0] :][:3]
    components = tuple((content[1 + 2 * n], content[2 + 2 * n]) for n in range(content[0]))
    return Scan(components, first, last, bits >> 4, bits & 15)


def is_in_one_scan(data: bytes, structure: Structure) -> bool:
    """Whether the first scan holds the whole picture, in Huffman codes."""
    scan = scan_of(data, structure.first_scan)
    has_all = scan is not None and len(scan.components) == len(structure.components)
    return has_all and structure.frame in HUFFMAN_SEQUENTIAL


def lacks_scans(data: bytes, structure: Structure) -> bool:
    """Whether some bits of some coefficients, or a whole component, are in none of the scans: libjpeg never says so."""
    if is_in_one_scan(data, structure):
        return False
    lowest = {identifier: [BLOCK] * BLOCK for identifier, _ in structure.components}
    for segment in segments_behind(data, structure.first_scan):
        if segment.marker == SOS and (scan := scan_of(data, segment)):
            coefficients = range(scan.first, scan.last + 1) if structure.frame in PROGRESSIVE else range(BLOCK)
            for identifier, _ in scan.components:
                for coefficient in coefficients if identifier in lowest else ():
                    lowest[identifier][coefficient % BLOCK] = scan.low if structure.frame in PROGRESSIVE else 0
    return any(any(bits) for bits in lowest.values())


def damaged_table(data: bytes, structure: Structure) -> str | None:
    """What is wrong with a table of the header that libjpeg takes without a word."""
    for segment in structure.segments:
        content = data[segment.start : segment.end]
        if segment.marker == DQT:
            at = 0
            while at < len(content):
                size = BLOCK * (2 if content[at] >> 4 else 1)
                steps = content[at + 1 : at + 1 + size]
                if 0 in (steps if size == BLOCK else struct.unpack(f">{len(steps) // 2}H", steps[: len(steps) // 2 * 2])):
                    return "a quantization table holds zeros"
                at += 1 + size
        elif segment.marker == DHT:
            for _, symbols in huffman_tables(content):
                if len(set(symbols)) < len(symbols):
                    return "a Huffman table names a symbol twice"
    return None


def huffman_tables(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The class and number of each table of a DHT segment, and its symbols, those with the shortest codes first."""
    at = 0
    while at + 17 <= len(content):
        count = sum(content[at + 1 : at + 17])
        yield content[at], content[at + 17 : at + 17 + count]
        at += 17 + count


def holds_zero_run(data: bytes, structure: Structure, length: int = 256) -> bool:
    """Whether the data of a picture in one scan holds zero bytes that no encoder writes.

    Zero bits are the first code of a Huffman table. Where that code stands for a coefficient, not for the end of a block, so
    many zero bytes would be hundreds of equal coefficients one after the other.
    """
    start = structure.first_scan.end
    run = data.find(bytes(length), start)
    scan = scan_of(data, structure.first_scan)
    if run < 0 or not scan or not is_in_one_scan(data, structure):
        return False
    headers = (data[segment.start : segment.end] for segment in structure.segments if segment.marker == DHT)
    tables = dict(table for header in headers for table in huffman_tables(header))
    first_symbols = (tables.get(0x10 | numbers & 15, b"")[:1] for _, numbers in scan.components)
    if not any(symbol.strip(b"\0") for symbol in first_symbols):
        return False
    end = MARKER_IN_DATA.search(data, start)
    return end is None or run < end.start()


def broken_profile(data: bytes, structure: Structure) -> bytes | None:
    """What is there of an ICC profile that lacks a segment, or has one twice; None for a whole profile, and without one."""
    contents = (data[s.start : s.end] for s in structure.segments if s.marker == APP2)
    parts = sorted(content[len(ICC) :] for content in contents if content.startswith(ICC) and len(content) > len(ICC) + 2)
    whole = [bytes((number + 1, len(parts))) for number in range(len(parts))]
    return None if [part[:2] for part in parts] == whole else b"".join(part[2:] for part in parts)


def plain_copy(data: bytes, structure: Structure) -> bytes:
    """Return a JPEG whose header no decoder warns of, because libjpeg tells of the first warning alone.

    Left out are bytes that belong to no segment, application segments that are shorter than they have to be, and the
    segments of a profile that lacks one. An unknown version of JFIF, an unknown colour transform of Adobe, and scan
    parameters that a sequential JPEG must not have (some Samsung telephones write them) are replaced by the values that
    libjpeg assumes. A height that follows the first scan goes into the frame header.

    Returns: `data` itself where nothing has to change.
    """
    parts = [data[:2]]
    drops_profile = broken_profile(data, structure) is not None
    for segment in structure.segments:
        content = data[segment.start : segment.end]
        if is_short(segment.marker, content) or (drops_profile and segment.marker == APP2 and content.startswith(ICC)):
            continue
        parts.append(
            struct.pack(">BBH", 0xFF, segment.marker, len(content) + 2) + corrected(segment.marker, content, structure)
        )
    head = b"".join(parts)
    if head == data[: len(head)] and len(head) == structure.first_scan.end:
        return data
    return head + data[structure.first_scan.end :]


def is_short(marker: int, content: bytes) -> bool:
    """Whether a segment of an application breaks off where decoders expect more."""
    for of, name, least in ((APP0, b"JFIF\0", 12), (APP2, ICC, 15), (APP14, b"Adobe", 12)):
        if marker == of and content.startswith(name[:4]) and len(content) < least:
            return True
    return not content and marker >= APP0


def corrected(marker: int, content: bytes, structure: Structure) -> bytes:
    """The content of a segment as decoders take it without a warning."""
    if marker == APP0 and content.startswith(b"JFIF\0") and content[5] != 1:
        return content[:5] + b"\1\1" + content[7:]
    if (
        marker == APP14
        and content.startswith(b"Adobe")
        and content[11] not in (0, assumed := 2 if len(structure.components) == 4 else 1)
    ):
        return content[:11] + bytes([assumed]) + content[12:]
    if marker in FRAMES and not any(content[1:3]):
        return content[:1] + struct.pack(">H", structure.height) + content[3:]
    if marker == SOS and structure.frame in SEQUENTIAL:
        return content[:-3] + b"\0\x3f\0"
    return content
