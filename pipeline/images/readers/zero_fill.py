"""Find runs of zero bytes in image data that has no checksums.

AVIF, HEIC and JPEG 2000 decode them to wrong pixels without a warning. Disks and interrupted downloads leave sectors
of zeros. The arithmetic coders of these formats write bytes that look random: in files of flat images, stripes and
text, the longest run of zeros was 30 bytes. WebP is not checked, because intact WebP files contain runs of hundreds of
zeros.
"""

from imagemill.pipeline.images.readers.heif_items import read_items

ZERO_SECTOR = bytes(256)
START_OF_DATA, END_OF_CODESTREAM = b"\xff\x93", b"\xff\xd9"
CODEC_PROPERTIES = {"AVIF": b"av1C", "HEIC": b"hvcC"}
"""By format: the property of the items that hold image data. Metadata may contain zeros."""


def find_zero_fill(image_format: str | None, data: bytes) -> str | None:
    """Describe the damage of a file with zeros where an encoder writes none, else return None.

    Args:
        image_format: as `identify_format` returns it.
        data: the content of the file.
    """
    if image_format not in ("AVIF", "HEIC", "JPEG2000") or ZERO_SECTOR not in data:
        return None
    if image_format == "JPEG2000":
        start, end = data.find(START_OF_DATA), data.rfind(END_OF_CODESTREAM)
        ranges = [(max(0, start), end if end > start else len(data))]
    else:
        ranges = find_item_data(data, CODEC_PROPERTIES[image_format])
    has_zeros = any(data.find(ZERO_SECTOR, start, end) >= 0 for start, end in ranges)
    return "zero bytes replace image data" if has_zeros else None


def find_item_data(data: bytes, codec_property: bytes) -> list[tuple[int, int]]:
    """Return where the coded images of a HEIF file begin and end; empty for a sequence without still images."""
    items = [item for item in read_items(data).by_id.values() if any(box[0] == codec_property for box in item.properties)]
    return [extent for item in items for extent in item.extents]
