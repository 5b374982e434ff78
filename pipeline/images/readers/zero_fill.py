"""Find runs of zero bytes in image data that has no checksums.

AVIF and JPEG 2000 decode them to wrong pixels without a warning. Disks and interrupted downloads leave sectors of
zeros. The arithmetic coders of these formats write bytes that look random: in files of flat images, stripes and text,
the longest run of zeros was 30 bytes. WebP is not checked, because intact WebP files contain runs of hundreds of
zeros.
"""

ZERO_SECTOR = bytes(256)
START_OF_DATA, END_OF_CODESTREAM = b"\xff\x93", b"\xff\xd9"


def find_zero_fill(image_format: str | None, data: bytes) -> str | None:
    """Describe the damage of a file with zeros where an encoder writes none, else return None.

    Args:
        image_format: as `identify_format` returns it.
        data: the content of the file.
    """
    if image_format not in ("AVIF", "JPEG2000") or ZERO_SECTOR not in data:
        return None
    if image_format == "AVIF":
        # A block of EXIF may contain zeros, and may lie between the image data, so files with EXIF are not checked.
        start, end = (len(data) if b"Exif" in data else data.find(b"mdat")), len(data)
    else:
        start, end = data.find(START_OF_DATA), data.rfind(END_OF_CODESTREAM)
        end = end if end > start else len(data)
    has_zeros = data.find(ZERO_SECTOR, max(0, start), end) >= 0
    return "zero bytes replace image data" if has_zeros else None
