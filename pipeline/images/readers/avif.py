"""AVIF: decoded by libavif through Pillow, with the properties that libavif leaves to its callers.

Those are the clean aperture (`clap`, a crop), turns and mirrors in their order, and colours that are not sRGB. Of a picture
of more than 8 bits whose colours are converted, imagecodecs gives all bits.
Boxes are those of ISO/IEC 14496-12 and 23008-12.
"""

import io
import struct
from dataclasses import dataclass, field
from fractions import Fraction

import imagecodecs
import numpy as np
from PIL import Image

from imagemill.pipeline.images.colour import ColourSpace, cicp
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.readers.boxes import Box, boxes, find
from imagemill.pipeline.images.readers.pillow import copy_metadata, open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import rescale, row_strips

SAMPLE_ENTRY_BYTES = 78
"""Fields of a video track's sample entry before its boxes."""
# Of each EXIF orientation, a stored picture [[0, 1, 2], [3, 4, 5]] made upright.
STORED = np.arange(6).reshape(2, 3)
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: np.rot90(STORED, -1),
    7: STORED[::-1, ::-1].T,
    8: np.rot90(STORED),
}


@dataclass
class Properties:
    """What the boxes say about the picture."""

    bits: int = 8
    gray: bool = False
    crop: tuple[int, int, int, int] | None = None
    """(left, top, right, bottom)."""
    orientation: int = 1
    profile: bytes | None = None
    space: ColourSpace | None = None
    ignored: str = ""
    sequence: bool = False
    turned: np.ndarray = field(default_factory=lambda: STORED)
    """What the turns and mirrors so far make of STORED."""


def properties_of(data: bytes) -> Properties:
    """The properties of the picture that a file shows first.

    Raises: ImageError for a clean aperture that cannot be followed.
    """
    found = Properties()
    size = (0, 0)
    described: list[Box] = []
    if data[8:12] == b"avis" and (entry := track_entry(data)):
        found.sequence = True
        described = list(boxes(data, entry[1] + SAMPLE_ENTRY_BYTES, entry[2]))
        size = struct.unpack_from(">HH", data, entry[1] + 24)
    elif meta := find(data, (b"meta",), 0, len(data)):
        described = item_properties(data, meta)
    for kind, start, end in described:
        if kind == b"ispe":
            size = struct.unpack_from(">II", data, start + 4)
        elif kind == b"av1C":
            flags = data[start + 2]
            found.bits = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
            found.gray = bool(flags & 0x10)
        elif kind == b"colr":
            read_colours(data, start, end, found)
        elif kind == b"clap":
            if not np.array_equal(found.turned, STORED):
                raise ImageError("UnsupportedFormat", "an AVIF that is turned before it is cropped (clap); convert it")
            found.crop = clean_aperture(struct.unpack_from(">8i", data, start), *size)
        elif kind == b"irot":
            found.turned = np.rot90(found.turned, data[start] & 3)
        elif kind == b"imir":
            found.turned = found.turned[:, ::-1] if data[start] & 1 else found.turned[::-1]
    found.orientation = next(n for n, upright in UPRIGHT.items() if np.array_equal(upright, found.turned))
    return found


def track_entry(data: bytes) -> Box | None:
    """The sample entry of the first track of pictures."""
    movie = find(data, (b"moov",), 0, len(data))
    for kind, start, end in boxes(data, *movie[1:]) if movie else ():
        handler = find(data, (b"mdia", b"hdlr"), start, end)
        table = find(data, (b"mdia", b"minf", b"stbl", b"stsd"), start, end)
        if kind == b"trak" and handler and table and data[handler[1] + 8 : handler[1] + 12] == b"pict":
            return next(boxes(data, table[1] + 8, table[2]), None)
    return None


def item_properties(data: bytes, meta: Box) -> list[Box]:
    """The properties of the primary item in their order, with those of its tiles that it lacks."""
    _, start, end = meta
    primary = find(data, (b"pitm",), start + 4, end)
    container = find(data, (b"iprp", b"ipco"), start + 4, end)
    if not primary or not container:
        return []
    item = int.from_bytes(data[primary[1] + 4 : primary[2]], "big")
    known = list(boxes(data, container[1], container[2]))
    properties = find(data, (b"iprp",), start + 4, end)
    chosen: list[Box] = []
    for kind, at, stop in boxes(data, *properties[1:]) if properties else ():
        if kind == b"ipma":
            chosen += [known[index - 1] for index in associations(data, at, stop).get(item, []) if 0 < index <= len(known)]
    kinds = {kind for kind, _, _ in chosen}
    # A grid leaves to its tiles what all of them share.
    chosen += [
        next((box for box in known if box[0] == kind), (b"", 0, 0)) for kind in (b"av1C", b"colr") if kind not in kinds
    ]
    return chosen


def associations(data: bytes, start: int, end: int) -> dict[int, list[int]]:
    """The numbers of the properties of each item, from 1 on."""
    version, flags, count = data[start], int.from_bytes(data[start + 1 : start + 4], "big"), 0
    (count,) = struct.unpack_from(">I", data, start + 4)
    at, items = start + 8, {}
    size = 2 if flags & 1 else 1
    for _ in range(min(count, end - start)):
        wide = 4 if version else 2
        item, entries = int.from_bytes(data[at : at + wide], "big"), data[at + wide]
        at += wide + 1
        numbers = (int.from_bytes(data[at + size * n : at + size * (n + 1)], "big") for n in range(entries))
        items[item] = [number & (0x7FFF if size == 2 else 0x7F) for number in numbers]
        at += size * entries
    return items


def read_colours(data: bytes, start: int, end: int, found: Properties) -> None:
    """Note what a box of colours says; a profile comes before numbers."""
    kind = data[start : start + 4]
    if kind in (b"prof", b"rICC"):
        found.profile = data[start + 4 : end]
    elif kind == b"nclx":
        found.space, found.ignored = cicp(*struct.unpack_from(">HH", data, start + 4))


def clean_aperture(numbers: tuple[int, ...], width: int, height: int) -> tuple[int, int, int, int]:
    """The rectangle of a `clap` property: ISO/IEC 14496-12, 12.1.4.

    Raises: ImageError where it is not of whole pixels inside the picture.
    """
    try:
        wide, high, right, down = (Fraction(n, d) for n, d in zip(numbers[0::2], numbers[1::2], strict=True))
    except ZeroDivisionError:
        wide = high = right = down = Fraction(0)
    left, top = right + (width - wide) / 2, down + (height - high) / 2
    corners = (left, top, left + wide, top + high)
    inside = 0 <= left < left + wide <= width and 0 <= top < top + high <= height
    if not inside or any(value.denominator != 1 for value in corners):
        raise ImageError("BrokenImage", "an AVIF whose clean aperture (clap) is not inside the picture")
    return tuple(int(value) for value in corners)  # type: ignore[return-value]


def read_avif(stream: io.BytesIO) -> StoredImage:
    """The first picture of a file.

    Raises: ImageError.
    """
    data = stream.getvalue()
    found = properties_of(data)
    with open_with_pillow(stream, "AVIF") as image:
        frames, mode = getattr(image, "n_frames", 1), image.mode
        has_alpha = mode.endswith("A")
        convert = found.space is not None and not found.profile and not found.space.is_srgb
        pixels: Image.Image | np.ndarray
        if found.bits > 8 and convert and frames == 1 and not found.sequence:
            pixels = all_bits(data, found)
        else:
            image.load()
            pixels = image.crop(found.crop) if found.crop else image
        opened = StoredImage(
            pixels=pixels,
            format="AVIF",
            mode="L" if found.gray or mode in ("L", "LA") else "RGB",
            has_alpha=has_alpha,
            bit_depth=found.bits,
            frames=frames,
            space=found.space,
            ignored=found.ignored,
        )
        copy_metadata(opened, image)
    # Turns count, and the orientation in EXIF does not.
    opened.orientation, opened.profile = found.orientation, found.profile
    return opened


def all_bits(data: bytes, found: Properties) -> np.ndarray:
    """(H,W), (H,W,3) or (H,W,4) uint16 that uses its whole range."""
    samples = imagecodecs.avif_decode(data, numthreads=1)
    if found.crop:
        left, top, right, bottom = found.crop
        samples = samples[top:bottom, left:right]
    for rows in row_strips(samples.shape[1], samples.shape[0]):
        samples[rows] = rescale(samples[rows], (1 << found.bits) - 1, 65535)
    return samples
