"""Sectors of zeros in picture data that has no checksums: AVIF and JPEG 2000 decode them to other pixels without a warning.

Their arithmetic coders write numbers that look random. The longest run of zeros in the files of flat pictures, of stripes
and of text was 30 bytes. Whole files of WebP have runs of hundreds of zeros, so that nothing can be said of them.
"""

ZERO_SECTOR = bytes(256)
START_OF_DATA, END_OF_CODESTREAM = b"\xff\x93", b"\xff\xd9"


def find_zero_fill(image_format: str | None, data: bytes) -> str | None:
    """What is wrong with the picture data of a file that holds zeros where an encoder writes none; None if nothing is."""
    if image_format not in ("AVIF", "JPEG2000") or ZERO_SECTOR not in data:
        return None
    if image_format == "AVIF":
        # An EXIF block may lie between the picture data, and may hold zeros.
        start, end = (len(data) if b"Exif" in data else data.find(b"mdat")), len(data)
    else:
        start, end = data.find(START_OF_DATA), data.rfind(END_OF_CODESTREAM)
        end = end if end > start else len(data)
    return "zero bytes take the place of picture data" if data.find(ZERO_SECTOR, max(0, start), end) >= 0 else None
