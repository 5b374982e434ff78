"""XMP of a source as its output may carry it: nothing in it is untrue of the picture next to it."""

import re
from collections.abc import Callable
from xml.dom import minidom
from xml.parsers.expat import ExpatError

MAX_XMP_BYTES = 2_000_000
"""More is left out: as a tree it would take many times its size."""
XMLNS = "http://www.w3.org/2000/xmlns/"
EXIF, TIFF, PHOTO = "http://ns.adobe.com/exif/1.0/", "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/photoshop/1.0/"

OTHER_FILES = (
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.apple.com/HDRGainMap/1.0/",
    "http://ns.apple.com/pixeldatainfo/1.0/",
    "http://ns.google.com/photos/1.0/camera/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/container/item/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/1.0/audio/",
    "http://ns.google.com/photos/1.0/focus/",
    "http://ns.google.com/photos/dd/1.0/",
    "http://ns.adobe.com/xmp/note/",
    "http://ns.adobe.com/xap/1.0/g/img/",
)
"""Namespaces that describe what else a source file held: gain maps, videos of motion photos, depth, sound, thumbnails, more
XMP."""
PLACES = (
    "http://ns.google.com/photos/1.0/panorama/",
    "http://www.metadataworkinggroup.com/schemas/regions/",
    "http://ns.microsoft.com/photo/1.2/t/RegionInfo#",
    "http://ns.microsoft.com/photo/1.2/t/Region#",
    "http://ns.acdsee.com/regions/",
    "http://ns.apple.com/faceinfo/1.0/",
)
"""Namespaces of sizes and places in a picture: panoramas, faces."""
PLACE_NAMES = {
    ("http://ns.microsoft.com/photo/1.2/", "RegionInfo"),
    ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "ImageRegion"),
}
FILE_NAMES = {
    *((TIFF, name) for name in ("ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation")),
    *((TIFF, name) for name in ("SamplesPerPixel", "PlanarConfiguration", "YCbCrSubSampling", "YCbCrPositioning")),
    *((EXIF, name) for name in ("PixelXDimension", "PixelYDimension", "SubjectArea", "SubjectLocation")),
    *((EXIF, f"FocalPlane{name}") for name in ("XResolution", "YResolution", "ResolutionUnit")),
    (PHOTO, "ColorMode"),
    ("http://purl.org/dc/elements/1.1/", "format"),
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
}
"""What describes the samples or the file of the source, which the output has in another size, orientation or format."""
COLOUR_NAMES = {(EXIF, "ColorSpace"), (PHOTO, "ICCProfile")}

Name = tuple[str | None, str | None]


def carried_xmp(xmp: bytes | None, turned: bool, converted: bool) -> bytes | None:
    """Correct the XMP of a source for its upright copy.

    Args:
        turned: whether the picture was turned, so that places in it are elsewhere.
        converted: whether its colours have become sRGB.

    Returns: None where there is no XMP, none that can be understood, or too much.
    """

    def is_untrue(name: Name) -> bool:
        return (
            name[0] in OTHER_FILES
            or name in FILE_NAMES
            or (converted and name in COLOUR_NAMES)
            or (turned and is_place(name))
        )

    return rewritten(xmp, is_untrue) if xmp else None


def resized_xmp(xmp: bytes) -> bytes | None:
    """Drop sizes and places in pixels from XMP that `carried_xmp` gave, for an output of another size."""
    return rewritten(xmp, is_place)


def is_place(name: Name) -> bool:
    """Whether a property says where something is in the picture, or how large the picture is."""
    return name[0] in PLACES or name in PLACE_NAMES


def rewritten(xmp: bytes, is_untrue: Callable[[Name], bool]) -> bytes | None:
    """XMP without the properties of which `is_untrue` holds, upright; None where it is not XML."""
    xmp = xmp.strip(b"\0 \r\n\t")
    # Entities have no place in XMP, and can be made to grow without limit.
    if len(xmp) > MAX_XMP_BYTES or re.search(rb"<!\s*(DOCTYPE|ENTITY)", xmp):
        return None
    try:
        document = minidom.parseString(xmp)
    except (ExpatError, ValueError, LookupError):
        return None
    for element in document.getElementsByTagName("*"):
        name = (element.namespaceURI, element.localName)
        if is_untrue(name) and element.parentNode is not None:
            element.parentNode.removeChild(element)
            continue
        for attribute in list(element.attributes.values()):
            names = (attribute.namespaceURI, attribute.localName)
            declares_untrue = attribute.namespaceURI == XMLNS and is_untrue((attribute.value, None))
            if declares_untrue or is_untrue(names):
                element.removeAttributeNode(attribute)
            elif names == (TIFF, "Orientation"):
                attribute.value = "1"
        if name == (TIFF, "Orientation") and element.firstChild is not None:
            element.firstChild.nodeValue = "1"
    return "\n".join(node.toxml() for node in document.childNodes).encode("utf-8", "replace")
