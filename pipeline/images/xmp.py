"""Correct the XMP of a source, so that everything in it is true of the output."""

import re
from collections.abc import Callable
from xml.dom import minidom
from xml.parsers.expat import ExpatError

MAX_XMP_BYTES = 2_000_000
"""Larger XMP is dropped, because the parsed tree takes many times its size."""
XMLNS = "http://www.w3.org/2000/xmlns/"
EXIF, TIFF, PHOTO = "http://ns.adobe.com/exif/1.0/", "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/photoshop/1.0/"

SOURCE_FILE_NAMESPACES = (
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
"""Namespaces that describe other content of the source file: gain maps, videos of motion photos, depth maps, sound,
thumbnails, extended XMP."""
REGION_NAMESPACES = (
    "http://ns.google.com/photos/1.0/panorama/",
    "http://www.metadataworkinggroup.com/schemas/regions/",
    "http://ns.microsoft.com/photo/1.2/t/RegionInfo#",
    "http://ns.microsoft.com/photo/1.2/t/Region#",
    "http://ns.acdsee.com/regions/",
    "http://ns.apple.com/faceinfo/1.0/",
)
"""Namespaces of sizes and positions in pixels: panoramas, faces."""
REGION_PROPERTIES = {
    ("http://ns.microsoft.com/photo/1.2/", "RegionInfo"),
    ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "ImageRegion"),
}
SOURCE_FILE_PROPERTIES = {
    *((TIFF, name) for name in ("ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation")),
    *((TIFF, name) for name in ("SamplesPerPixel", "PlanarConfiguration", "YCbCrSubSampling", "YCbCrPositioning")),
    *((EXIF, name) for name in ("PixelXDimension", "PixelYDimension", "SubjectArea", "SubjectLocation")),
    *((EXIF, f"FocalPlane{name}") for name in ("XResolution", "YResolution", "ResolutionUnit")),
    (PHOTO, "ColorMode"),
    ("http://purl.org/dc/elements/1.1/", "format"),
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
}
"""Properties of the samples or the file of the source. The output may have another size, orientation or format."""
COLOUR_PROPERTIES = {(EXIF, "ColorSpace"), (PHOTO, "ICCProfile")}

Name = tuple[str | None, str | None]
"""Namespace and local name of a property."""


def correct_xmp(xmp: bytes | None, is_rotated: bool, is_converted: bool) -> bytes | None:
    """Correct the XMP of a source for its upright output.

    Args:
        xmp: of the source.
        is_rotated: whether the image was turned or mirrored, so that positions in it changed.
        is_converted: whether its colours were converted to sRGB.

    Returns:
        None if there is no XMP, or if it cannot be parsed or is too large.
    """

    def is_outdated(name: Name) -> bool:
        return (
            name[0] in SOURCE_FILE_NAMESPACES
            or name in SOURCE_FILE_PROPERTIES
            or (is_converted and name in COLOUR_PROPERTIES)
            or (is_rotated and is_region(name))
        )

    return remove_properties(xmp, is_outdated) if xmp else None


def remove_regions(xmp: bytes) -> bytes | None:
    """Remove sizes and positions in pixels from corrected XMP.

    They are wrong for an output of another size than its source.
    """
    return remove_properties(xmp, is_region)


def is_region(name: Name) -> bool:
    """Return whether a property gives a size or a position in the image."""
    return name[0] in REGION_NAMESPACES or name in REGION_PROPERTIES


def remove_properties(xmp: bytes, is_outdated: Callable[[Name], bool]) -> bytes | None:
    """Remove the properties for which `is_outdated` is true, and set the orientation to upright.

    Returns:
        None if the XMP is not valid XML or too large.
    """
    xmp = xmp.strip(b"\0 \r\n\t")
    # XMP has no use for entities, and an entity can expand without limit.
    if len(xmp) > MAX_XMP_BYTES or re.search(rb"<!\s*(DOCTYPE|ENTITY)", xmp):
        return None
    try:
        document = minidom.parseString(xmp)
    except (ExpatError, ValueError, LookupError):
        return None
    for element in document.getElementsByTagName("*"):
        name = (element.namespaceURI, element.localName)
        if is_outdated(name) and element.parentNode is not None:
            element.parentNode.removeChild(element)
            continue
        for attribute in list(element.attributes.values()):
            attribute_name = (attribute.namespaceURI, attribute.localName)
            declares_outdated = attribute.namespaceURI == XMLNS and is_outdated((attribute.value, None))
            if declares_outdated or is_outdated(attribute_name):
                element.removeAttributeNode(attribute)
            elif attribute_name == (TIFF, "Orientation"):
                attribute.value = "1"
        if name == (TIFF, "Orientation") and element.firstChild is not None:
            element.firstChild.nodeValue = "1"
    return "\n".join(node.toxml() for node in document.childNodes).encode("utf-8", "replace")
