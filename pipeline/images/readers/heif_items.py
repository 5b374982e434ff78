"""The items of HEIF files, which AVIF and HEIC files are: ISO/IEC 23008-12 and 14496-12.

An item is an image, a tile of one, or metadata. Properties describe an item: its size, its colours, how it is turned.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from imagemill.pipeline.images.errors import broken_image, unsupported_format
from imagemill.pipeline.images.orientation import STORED
from imagemill.pipeline.images.readers.boxes import MAX_METADATA_BYTES, Box, find_box, iterate_boxes, skip_exif_offset

EXIF, MIME = b"Exif", b"mime"
DESCRIBES, MADE_OF = b"cdsc", b"dimg"
"""Types of references between items."""
XMP_CONTENT_TYPE = b"application/rdf+xml\0"
OVERLAY = b"iovl"
DERIVED_SIZE_OFFSETS = {b"grid": 4, OVERLAY: 10}
"""By type of an item that is made of other items: the offset of its size, after a version and flags."""


@dataclass
class Item:
    """An item of a file."""

    item_type: bytes = b""
    properties: list[Box] = field(default_factory=list)
    """In the order in which they apply."""
    extents: list[tuple[int, int]] = field(default_factory=list)
    """Offsets in the file at which the parts of the item begin and end."""
    is_xmp: bool = False
    describes: list[int] = field(default_factory=list)
    """The items whose metadata this item is."""
    made_of: list[int] = field(default_factory=list)
    """The items that a grid or an overlay consists of."""

    def read(self, data: bytes) -> bytes | None:
        """Return the content of the item; None if it has more than MAX_METADATA_BYTES."""
        if sum(end - begin for begin, end in self.extents) > MAX_METADATA_BYTES:
            return None
        return b"".join(data[begin:end] for begin, end in self.extents)


@dataclass
class Items:
    """The items of a file."""

    by_id: dict[int, Item] = field(default_factory=dict)
    primary_id: int = 0
    """The item that viewers show."""
    descriptions: list[Box] = field(default_factory=list)
    """The boxes that say which item describes which."""
    all_properties: list[Box] = field(default_factory=list)

    @property
    def primary(self) -> Item:
        """The item that viewers show."""
        return self.by_id.get(self.primary_id, Item())

    def read_metadata(self, data: bytes) -> tuple[bytes | None, bytes | None]:
        """Return the EXIF and the XMP of the primary item; None where it has none, or more than MAX_METADATA_BYTES."""
        own = [item for item in self.by_id.values() if self.primary_id in item.describes]
        exif = next((content for item in own if item.item_type == EXIF and (content := item.read(data))), None)
        xmp = next((content for item in own if item.is_xmp and (content := item.read(data))), None)
        return exif and skip_exif_offset(exif), xmp

    def primary_properties(self, of_tiles: tuple[bytes, ...]) -> list[Box]:
        """Return the properties of the primary item in their order, then those that only its tiles have.

        Args:
            of_tiles: types of properties that a grid leaves to its tiles, which share them.
        """
        properties = list(self.primary.properties)
        own_types = {box_type for box_type, _, _ in properties}
        tile_properties = [box for tile in self.primary_tiles() for box in tile.properties]
        for tile_type in of_tiles:
            if tile_type not in own_types:
                properties += [box for box in tile_properties if box[0] == tile_type][:1]
        return properties

    def primary_tiles(self) -> list[Item]:
        """Return the items that the primary item is made of. They may be grids that are made of other items."""
        tiles: dict[int, Item] = {}
        item_ids = list(self.primary.made_of)
        # The list grows while the loop goes through it.
        for item_id in item_ids:
            if item_id not in tiles:
                tiles[item_id] = self.by_id.get(item_id, Item())
                item_ids += tiles[item_id].made_of
        return list(tiles.values())


def read_items(data: bytes) -> Items:
    """Read the items of a file; no items if the file has no box that lists them."""
    items = Items()
    meta = find_box(data, (b"meta",), 0, len(data))
    if not meta:
        return items
    _, start, end = meta
    start += 4
    if container := find_box(data, (b"iprp", b"ipco"), start, end):
        items.all_properties = list(iterate_boxes(data, container[1], container[2]))
    if properties_box := find_box(data, (b"iprp",), start, end):
        for box_type, at, stop in iterate_boxes(data, *properties_box[1:]):
            for item_id, indices in read_associations(data, at, stop) if box_type == b"ipma" else ():
                known = (items.all_properties[index - 1] for index in indices if 0 < index <= len(items.all_properties))
                items.by_id.setdefault(item_id, Item()).properties += known
    if info := find_box(data, (b"iinf",), start, end):
        read_types(data, info, items)
    if locations := find_box(data, (b"iloc",), start, end):
        read_locations(data, locations, find_box(data, (b"idat",), start, end), items)
    if references := find_box(data, (b"iref",), start, end):
        read_references(data, references, items)
    if primary := find_box(data, (b"pitm",), start, end):
        items.primary_id = int.from_bytes(data[primary[1] + 4 : primary[2]], "big")
    return items


def read_associations(data: bytes, start: int, end: int) -> Iterator[tuple[int, list[int]]]:
    """Yield each item with its property indices, from 1 on, out of a box `ipma`.

    Raises:
        ImageError: with the class BrokenImage, if the box is truncated.
    """
    version, flags = data[start], int.from_bytes(data[start + 1 : start + 4], "big")
    (count,) = struct.unpack_from(">I", data, start + 4)
    at = start + 8
    index_bytes, id_bytes = (2 if flags & 1 else 1), (4 if version else 2)
    index_mask = 0x7FFF if index_bytes == 2 else 0x7F
    for _ in range(count):
        item, entries = int.from_bytes(data[at : at + id_bytes], "big"), data[at + id_bytes]
        at += id_bytes + 1
        starts = range(at, at + index_bytes * entries, index_bytes)
        at += index_bytes * entries
        if at > end:
            raise broken_image("HEIF: the box ipma is truncated")
        yield item, [int.from_bytes(data[i : i + index_bytes], "big") & index_mask for i in starts]


def read_types(data: bytes, info: Box, items: Items) -> None:
    """Read the type of each item out of a box `iinf`."""
    _, start, end = info
    for box_type, at, stop in iterate_boxes(data, start + (8 if data[start] else 6), end):
        if box_type == b"infe" and data[at] >= 2:
            id_bytes = 2 if data[at] == 2 else 4
            item_id = int.from_bytes(data[at + 4 : at + 4 + id_bytes], "big")
            type_at = at + 6 + id_bytes
            item = items.by_id.setdefault(item_id, Item())
            item.item_type = data[type_at : min(type_at + 4, stop)]
            item.is_xmp = item.item_type == MIME and XMP_CONTENT_TYPE in data[type_at:stop]


def read_references(data: bytes, references: Box, items: Items) -> None:
    """Read which item describes which, and which is made of which, out of a box `iref`."""
    _, start, end = references
    id_bytes = 4 if data[start] else 2
    for box in iterate_boxes(data, start + 4, end):
        box_type, at, stop = box
        item = items.by_id.setdefault(int.from_bytes(data[at : at + id_bytes], "big"), Item())
        starts = range(at + id_bytes + 2, stop - id_bytes + 1, id_bytes)
        targets = [int.from_bytes(data[i : i + id_bytes], "big") for i in starts]
        if box_type == DESCRIBES:
            item.describes += targets
            items.descriptions.append(box)
        elif box_type == MADE_OF:
            item.made_of += targets


def read_locations(data: bytes, locations: Box, item_data: Box | None, items: Items) -> None:
    """Read where each item is stored out of a box `iloc`.

    Raises:
        ImageError: with the class BrokenImage, if the box is truncated.
    """
    _, at, end = locations
    version = data[at]
    offset_bytes, length_bytes, base_bytes, index_bytes = (
        n for byte in data[at + 4 : at + 6] for n in (byte >> 4, byte & 15)
    )
    at += 6
    if not version:
        index_bytes = 0
    # Extents that take no bytes of the box are all the same, and a small box can declare millions.
    most_extents = 65_535 if index_bytes + offset_bytes + length_bytes else 1

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > end:
            raise broken_image("HEIF: the box iloc is truncated")
        return int.from_bytes(data[at - count : at], "big")

    for _ in range(take(4 if version == 2 else 2)):
        item = items.by_id.setdefault(take(4 if version == 2 else 2), Item())
        method = take(2) & 15 if version else 0
        take(2)
        base = take(base_bytes)
        for _ in range(min(take(2), most_extents)):
            take(index_bytes)
            begin, length = base + take(offset_bytes), take(length_bytes)
            if method == 1 and item_data:
                begin += item_data[1]
            if method < 2:
                item.extents.append((begin, begin + length))


def read_derived_size(data: bytes, item: Item) -> tuple[int, int] | None:
    """Read the (width, height) that the content of a grid or an overlay declares; None for other items."""
    offset = DERIVED_SIZE_OFFSETS.get(item.item_type)
    if offset is None or not item.extents:
        return None
    begin, _ = item.extents[0]
    return struct.unpack_from(">II" if data[begin + 1] & 1 else ">HH", data, begin + offset)  # type: ignore[return-value]


def turn(upright: np.ndarray, box: Box, data: bytes) -> np.ndarray:
    """Apply a property that rotates or mirrors to STORED, as earlier properties have turned it."""
    box_type, start, _ = box
    if box_type == b"irot":
        return np.rot90(upright, data[start] & 3)
    if box_type == b"imir":
        return upright[:, ::-1] if data[start] & 1 else upright[::-1]
    return upright


def read_clean_aperture(data: bytes, start: int, size: tuple[int, int], upright: np.ndarray) -> tuple[int, int, int, int]:
    """Read (left, top, right, bottom) of a property `clap`, a crop: ISO/IEC 14496-12, 12.1.4.

    Args:
        data: the file.
        start: where the content of the property begins.
        size: (width, height) of the image.
        upright: STORED, as earlier properties have turned it.

    Raises:
        ImageError: with the class BrokenImage, if the rectangle is not inside the image or not aligned to pixels; with
            the class UnsupportedFormat, if the image is turned before.
    """
    if not np.array_equal(upright, STORED):
        raise unsupported_format("HEIF with a crop (clap) after a rotation")
    width, height = size
    numbers = struct.unpack_from(">8i", data, start)
    try:
        crop_width, crop_height, x, y = (Fraction(n, d) for n, d in zip(numbers[0::2], numbers[1::2], strict=True))
    except ZeroDivisionError:
        crop_width = crop_height = x = y = Fraction(0)
    left, top = x + (width - crop_width) / 2, y + (height - crop_height) / 2
    corners = (left, top, left + crop_width, top + crop_height)
    is_inside = 0 <= left < left + crop_width <= width and 0 <= top < top + crop_height <= height
    if not is_inside or any(value.denominator != 1 for value in corners):
        raise broken_image("HEIF: the clean aperture (clap) is not inside the image")
    return tuple(int(value) for value in corners)  # type: ignore[return-value]
