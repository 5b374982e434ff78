"""HEIC: libheif decodes through pi-heif-decoder, an optional library without encoders; boxes of the file say the rest.

libheif applies crops, rotations and mirrors. The orientation in EXIF repeats them and is ignored. Gain maps, depth maps
and thumbnails are not decoded. Boxes follow ISO/IEC 14496-12, 14496-15 and 23008-12, parameter sets ITU-T H.265.
"""

import io
import struct
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from imagemill.pipeline.images.colour import ColourSpace, parse_cicp
from imagemill.pipeline.images.errors import DECODER_ERRORS, broken_image, check_dimensions, unsupported_format
from imagemill.pipeline.images.orientation import STORED, TO_STORED_ORIENTATION, find_orientation
from imagemill.pipeline.images.readers.bits import BitReader
from imagemill.pipeline.images.readers.boxes import find_box
from imagemill.pipeline.images.readers.extras import import_extra
from imagemill.pipeline.images.readers.heif_items import (
    OVERLAY,
    Items,
    read_clean_aperture,
    read_derived_size,
    read_items,
    turn,
)
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.samples import expand_depth

HEVC_CONFIGURATION = b"hvcC"
SEQUENCE_PARAMETER_SET = 33
"""The type of the NAL unit that declares size and depth of a coded picture."""
CODED_BLOCK = 64
"""The largest side of a coding block. Coded sizes are padded to blocks."""


@dataclass
class Properties:
    """What the boxes of a file say about its primary image."""

    size: tuple[int, int] = (0, 0)
    """(width, height) after the crop and before rotations."""
    largest: tuple[int, int] = (0, 0)
    """(width, height) of the largest picture that decoding may allocate."""
    bits: int = 8
    is_gray: bool = False
    orientation: int = 1
    profile: bytes | None = None
    colour_space: ColourSpace | None = None
    ignored_colours: str = ""


def read_properties(data: bytes, items: Items) -> Properties:
    """Read the properties of the primary image.

    Raises:
        ImageError: with the class BrokenImage, or UnsupportedFormat for a sequence without a still image.
    """
    properties, upright = Properties(), STORED
    declared: list[tuple[int, int]] = []
    for box in items.primary_properties(of_tiles=(HEVC_CONFIGURATION, b"colr")):
        box_type, start, end = box
        if box_type == b"ispe":
            properties.size = struct.unpack_from(">II", data, start + 4)  # type: ignore[assignment]
            declared.append(properties.size)
        elif box_type == HEVC_CONFIGURATION:
            chroma_format, properties.bits = data[start + 16] & 3, (data[start + 17] & 7) + 8
            properties.is_gray = chroma_format == 0
            # libheif takes the depth from the configuration, libde265 from the parameter set.
            for coded in read_parameter_sets(data[start:end]):
                if (coded.chroma_format, coded.bits) != (chroma_format, properties.bits):
                    raise broken_image("HEIC: the decoder configuration (hvcC) disagrees with the coded picture")
        elif box_type == b"colr" and data[start : start + 4] in (b"prof", b"rICC"):
            properties.profile = data[start + 4 : end]
        elif box_type == b"colr" and data[start : start + 4] == b"nclx":
            code_points = struct.unpack_from(">HH", data, start + 4)
            properties.colour_space, properties.ignored_colours = parse_cicp(*code_points)
        elif box_type == b"clap":
            left, top, right, bottom = read_clean_aperture(data, start, properties.size, upright)
            properties.size = right - left, bottom - top
        else:
            upright = turn(upright, box, data)
    if not declared and find_box(data, (b"moov",), 0, len(data)):
        raise unsupported_format("HEIC sequence without a still image")
    if not declared:
        raise broken_image("HEIC: the file declares no image")
    check_dimensions("HEIC", *properties.size)
    if properties.bits > 8 and any(item.item_type == OVERLAY for item in (items.primary, *items.primary_tiles())):
        # libheif 1.23.4 writes samples of two bytes into a canvas of one byte per sample.
        raise unsupported_format("HEIC overlay (iovl) of more than 8 bits")
    properties.orientation = find_orientation(upright)
    if derived := read_derived_size(data, items.primary):
        declared.append(derived)
    # A file may declare a small image and contain a large one, which libde265 would allocate.
    width, height = (-(-side // CODED_BLOCK) * CODED_BLOCK for side in declared[0])
    for box in items.all_properties:
        if box[0] == HEVC_CONFIGURATION:
            coded_sizes = (coded.size for coded in read_parameter_sets(data[box[1] : box[2]]))
            declared += (size for size in coded_sizes if size[0] * size[1] > width * height)
    properties.largest = max(declared, key=lambda size: size[0] * size[1])
    return properties


@dataclass
class ParameterSet:
    """What a sequence parameter set of HEVC says about a coded picture."""

    size: tuple[int, int]
    """(width, height), padded to blocks."""
    chroma_format: int
    """0 for gray."""
    bits: int


def read_parameter_sets(configuration: bytes) -> list[ParameterSet]:
    """Read the sequence parameter sets of a property `hvcC`."""
    parameter_sets, at = [], 23
    for _ in range(configuration[22]):
        unit_type = configuration[at] & 0x3F
        (count,) = struct.unpack_from(">H", configuration, at + 1)
        at += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", configuration, at)
            if unit_type == SEQUENCE_PARAMETER_SET:
                parameter_sets.append(parse_parameter_set(configuration[at + 2 : at + 2 + length]))
            at += 2 + length
    return parameter_sets


def parse_parameter_set(unit: bytes) -> ParameterSet:
    """Parse a sequence parameter set: ITU-T H.265, 7.3.2.2."""
    # An encoder inserts a byte of 3 wherever data would look like a start code.
    bits = BitReader(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.skip(4)
    sub_layers = bits.take(3)
    bits.skip(1 + 96)
    if sub_layers:
        flags = [(bits.take(1), bits.take(1)) for _ in range(sub_layers)]
        bits.skip(2 * (8 - sub_layers))
        for has_profile, has_level in flags:
            bits.skip(88 * has_profile + 8 * has_level)
    bits.exp_golomb()
    chroma_format = bits.exp_golomb()
    if chroma_format == 3:
        bits.skip(1)
    size = bits.exp_golomb(), bits.exp_golomb()
    if bits.take(1):
        # The conformance window is a crop.
        for _ in range(4):
            bits.exp_golomb()
    return ParameterSet(size, chroma_format, bits.exp_golomb() + 8)


def read_heic_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) of the largest picture that decoding the primary image may allocate."""
    data = stream.getvalue()
    return read_properties(data, read_items(data)).largest


def read_heic(stream: io.BytesIO) -> StoredImage:
    """Decode the primary image.

    Raises:
        ImageError: with the class MissingExtra, UnsupportedFormat or BrokenImage.
    """
    heif = load_library()
    data = stream.getvalue()
    items = read_items(data)
    properties = read_properties(data, items)
    exif, xmp = items.read_metadata(data)
    try:
        file = heif.HeifFile(hide_metadata(data, items), convert_hdr_to_8bit=False, hdr_to_16bit=False)
        # pi-heif leaves out images that it cannot decode, and names another image as primary then.
        if not len(file) or not (image := file[file.primary_index]).info["primary"]:
            raise unsupported_format("HEIF whose primary image is not coded in HEVC")
        if image.premultiplied_alpha:
            raise unsupported_format("HEIC with premultiplied opacity")
        # The samples are memory of libheif, which it releases together with `image`.
        pixels = np.array(image)
    except DECODER_ERRORS as e:
        problem = " ".join(str(e).split())
        if problem.startswith("Unsupported"):
            raise unsupported_format(f"HEIC of this kind ({problem})") from None
        raise broken_image(f"libheif: {problem}") from None
    if pixels.dtype == np.uint16:
        expand_depth(pixels, properties.bits)
    return StoredImage(
        pixels=TO_STORED_ORIENTATION[properties.orientation](pixels),
        format="HEIC",
        mode="L" if properties.is_gray else "RGB",
        has_alpha=image.has_alpha,
        bit_depth=properties.bits,
        frames=len(file),
        orientation=properties.orientation,
        profile=properties.profile,
        exif=exif,
        xmp=xmp,
        colour_space=properties.colour_space,
        ignored_colours=properties.ignored_colours,
    )


def hide_metadata(data: bytes, items: Items) -> bytes:
    """Return the file without links from metadata to images. pi-heif crashes on metadata that are damaged."""
    if not items.descriptions:
        return data
    hidden = bytearray(data)
    for _, at, _ in items.descriptions:
        # The type of a box precedes its content.
        hidden[at - 4 : at] = b"skip"
    return bytes(hidden)


def load_library() -> ModuleType:
    """Import pi-heif-decoder, or the similar pillow-heif, and limit it to one thread and to primary images.

    Raises:
        ImageError: with the class MissingExtra.
    """
    heif = import_extra(("pi_heif", "pillow_heif"), "heif", "HEIC")
    # Workers decode each image in one thread.
    heif.options.DECODE_THREADS = 1
    heif.options.THUMBNAILS = heif.options.DEPTH_IMAGES = heif.options.AUX_IMAGES = False
    return heif
