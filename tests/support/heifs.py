"""HEIF files put together from boxes around small pieces of HEVC, because no library without GPL code encodes HEVC.

The pieces are in `tests/pipeline/data/{colour,gray,deep}.heic`: `quadrants(64, 96)` in colour, in gray, and in colour with
10 bits, written once by pillow-heif 1.8.1 with `quality=60`.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.exact_writers import box

DATA = Path(__file__).parents[1] / "pipeline" / "data"
COLOURS = np.array([[(200, 60, 50), (60, 170, 80)], [(70, 80, 190), (210, 200, 70)]], np.uint8)
"""The colours of the quadrants, from top left to bottom right."""
WIDTH, HEIGHT = 96, 64


def quadrants(height: int, width: int) -> np.ndarray:
    """Return an image of four colours."""
    return COLOURS.repeat(height // 2, 0).repeat(width // 2, 1)


def corners(rgb: np.ndarray) -> np.ndarray:
    """Return the colours in the middle of the quadrants of (H,W,C): (2,2,C)."""
    height, width = rgb.shape[:2]
    return rgb[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]


@dataclass
class Picture:
    """An item of a file, and the properties that describe it."""

    content: bytes
    properties: tuple[bytes, ...] = ()
    kind: bytes = b"hvc1"
    tiles: tuple[int, ...] = ()
    """The items that a grid consists of."""
    auxiliary_to: int = 0
    describes: int = 0
    """The item whose metadata this item is."""
    is_hidden: bool = False


def full_box(kind: bytes, content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags) + content)


def load(name: str) -> tuple[bytes, bytes]:
    """Return the HEVC data and the decoder configuration (a property) of a file in the folder of test data."""
    data = (DATA / f"{name}.heic").read_bytes()
    at = data.index(b"hvcC") - 4
    configuration = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    return data[data.index(b"mdat") + 4 :], configuration


def size(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return full_box(b"ispe", struct.pack(">II", width, height))


def picture(name: str = "colour", *properties: bytes, **options: object) -> Picture:
    """Return an item with one of the pieces of HEVC, and more properties."""
    content, configuration = load(name)
    return Picture(content, (size(), configuration, *properties), **options)  # type: ignore[arg-type]


def turn(rotations: int, mirror: int | None = None) -> tuple[bytes, ...]:
    """Return the properties that mirror (0: upside down, 1: left and right) and rotate counter-clockwise."""
    mirrors = () if mirror is None else (box(b"imir", bytes([mirror])),)
    return (box(b"irot", bytes([rotations])), *mirrors) if rotations else mirrors


def colours(primaries: int, transfer: int) -> bytes:
    """Return the property that names colours by code points."""
    return box(b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, 6, 0x80))


def heif_file(*pictures: Picture, primary: int = 1, exif: bytes = b"", brand: bytes = b"heic") -> bytes:
    """Return a file of items, which are numbered from 1 on."""
    items = [*pictures, *([Picture(bytes(4) + exif, kind=b"Exif", describes=primary)] if exif else [])]
    properties = list(dict.fromkeys(one for item in items for one in item.properties))
    associations, information, references = b"", b"", b""
    for number, item in enumerate(items, 1):
        links = bytes(0x80 | properties.index(one) + 1 for one in item.properties)
        if links:
            associations += struct.pack(">HB", number, len(links)) + links
        entry = struct.pack(">HH", number, 0) + item.kind + b"\0"
        entry += b"application/rdf+xml\0" if item.kind == b"mime" else b""
        information += full_box(b"infe", entry, version=2, flags=int(item.is_hidden))
        for kind, targets in ((b"dimg", item.tiles), (b"auxl", (item.auxiliary_to,)), (b"cdsc", (item.describes,))):
            if any(targets):
                references += box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *targets))
    count = sum(bool(item.properties) for item in items)
    parts = (
        full_box(b"hdlr", bytes(4) + b"pict" + bytes(13)),
        full_box(b"pitm", struct.pack(">H", primary)),
        full_box(b"iinf", struct.pack(">H", len(items)) + information),
        *((full_box(b"iref", references),) if references else ()),
        box(b"iprp", box(b"ipco", b"".join(properties)) + full_box(b"ipma", struct.pack(">I", count) + associations)),
    )
    head = box(b"ftyp", brand + bytes(4) + b"mif1heic")
    # Each item takes 14 bytes of the box with locations, which comes last in `meta`.
    at = len(head) + 12 + sum(map(len, parts)) + 16 + 14 * len(items) + 8
    locations = b""
    for number, item in enumerate(items, 1):
        locations += struct.pack(">HHHII", number, 0, 1, at, len(item.content))
        at += len(item.content)
    location_box = full_box(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)) + locations)
    meta = full_box(b"meta", b"".join(parts) + location_box)
    return head + meta + box(b"mdat", b"".join(item.content for item in items))
