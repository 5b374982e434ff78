"""Decode image files to upright sRGB pixels."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from imagemill.pipeline.images.colour import SRGB, Conversion
from imagemill.pipeline.images.config import MAX_PIXELS, ImageConfig
from imagemill.pipeline.images.errors import DAMAGED_IMAGE, DECODER_ERRORS, ImageError
from imagemill.pipeline.images.icc import in_srgb, treatment
from imagemill.pipeline.images.metadata import Metadata, carried
from imagemill.pipeline.images.readers import select_reader
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.readers.signatures import HEAD_BYTES, identify_format, unreadable_error
from imagemill.pipeline.images.readers.zero_fill import find_zero_fill
from imagemill.pipeline.images.samples import row_strips
from imagemill.pipeline.images.transparency import fill_hidden
from imagemill.pipeline.store_failures import reason

# An upright array (H,W,…) as its file stores it, by the EXIF orientation: all of them views.
AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}

RESTORE = "A part of the picture is damaged or missing: restore the file"


@dataclass
class DecodedImage:
    """A decoded image and what its file said of itself."""

    rgb: np.ndarray
    """(H,W,3) uint8, upright. Fully transparent pixels have colours interpolated from visible ones."""
    alpha: np.ndarray | None
    """(H,W) uint8, upright; None too where it was laid onto a colour."""
    format: str
    is_gray: bool
    orig_width: int
    orig_height: int
    exif_orientation: int
    bit_depth: int
    frames: int
    has_alpha: bool
    """Whether the file has transparency."""
    icc: str
    """What was done about the colours: "none" (they are sRGB, or the file does not say), "converted" (to sRGB), "kept" (with
    their profile), "unreadable" (the profile is damaged, and ignored) or "ignored: " and what was ignored."""
    profile: bytes | None = None
    """The ICC profile of `rgb`, where it was kept."""
    metadata: Metadata = field(default_factory=Metadata)
    """What the output carries."""
    is_damaged: bool = False
    """Whether some of the pixels are not those that were encoded."""


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, config: ImageConfig = ImageConfig(), accept_damaged: bool = False
) -> DecodedImage:
    """Decode an image file to upright RGB.

    The first frame of an animation; samples of more than 8 bits are scaled to 8; alpha is kept next to the colours, or they
    are laid onto a colour. Metadata and profiles that are broken are left out: the picture is what counts.

    Args:
        accept_damaged: give the picture of a file whose picture data is damaged or missing in part too.

    Raises: ImageError with the class EmptyFile, UnknownFormat, UnsupportedFormat, TooManyPixels, UnsupportedMode,
        DamagedImage or BrokenImage.
    """
    if not data:
        raise ImageError("EmptyFile", "the file is empty")
    head, stream = data[:HEAD_BYTES], io.BytesIO(data)
    # `to_picture` closes the stream once the file is decoded: of a large one there is no room for both file and pixels.
    del data
    try:
        reader = select_reader(head)
        check_size(reader.read_size(stream), max_pixels)
        # A reader may close the stream.
        damage_of_file = find_zero_fill(identify_format(head), stream.getvalue())
        opened = reader.read(stream)
        opened.damage = opened.damage or damage_of_file
        if opened.damage and not accept_damaged:
            raise ImageError(DAMAGED_IMAGE, f"{opened.damage}. {RESTORE}")
        return to_picture(opened, stream, config)
    except UnidentifiedImageError:
        raise unreadable_error(head) from None
    except DECODER_ERRORS as e:
        raise ImageError("BrokenImage", reason(e)) from None


def decode_stored_samples(data: bytes) -> np.ndarray:
    """Return the samples of a file that `decode_image` accepts, upright, at their stored depth and in their stored colours.

    Returns: (H,W) gray or (H,W,3) RGB: uint8, or uint16 whose samples use the whole range of their type.

    Raises: as the reader of the format does.
    """
    opened = select_reader(data[:HEAD_BYTES]).read(io.BytesIO(data))
    width, height = opened.size
    samples = opened.samples(slice(0, height))
    shape = (width, height) if opened.orientation >= 5 else (height, width)
    upright = np.empty((*shape, *samples.shape[2:]), samples.dtype)
    AS_STORED[opened.orientation](upright)[:] = samples
    return upright


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raises: ImageError for (width, height) of more than `max_pixels`."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            "TooManyPixels",
            f"{width}×{height} = {width * height / 1e6:.1f} MP is over max_pixels={max_pixels}: "
            f"raise max_pixels to {width * height} or more",
        )


def read_pixel_count(data: bytes) -> int:
    """Width × height by the header; 0 where there is none that can be read."""
    try:
        width, height = select_reader(data[:HEAD_BYTES]).read_size(io.BytesIO(data))
    except (ImageError, UnidentifiedImageError, *DECODER_ERRORS):
        return 0
    return width * height


def to_picture(opened: StoredImage, stream: io.BytesIO, config: ImageConfig) -> DecodedImage:
    """Turn and convert a decoded file as `decode_image` gives it. Closes `stream`, its file."""
    width, height = opened.size
    icc, transform = treatment(opened.profile, opened.mode, config.icc == "keep")
    conversion = None
    if not opened.profile:
        icc, conversion = colour_treatment(opened, config.icc == "keep")
    metadata = carried(opened, config.metadata, icc == "converted")
    # Of a TIFF this is the whole file.
    opened.exif = None
    stream.close()
    if opened.is_rgb_array and not transform and not conversion:
        rgb, alpha = turned(opened), None
    else:
        rgb, alpha = converted(opened, transform, conversion, config.matte)
    return DecodedImage(
        rgb=rgb,
        alpha=alpha,
        format=opened.format,
        is_gray=opened.mode == "L" and not (opened.has_alpha and config.matte and len(set(config.matte)) > 1),
        orig_width=width,
        orig_height=height,
        exif_orientation=opened.orientation,
        bit_depth=opened.bit_depth,
        frames=opened.frames,
        has_alpha=opened.has_alpha,
        icc=icc,
        profile=opened.profile if icc == "kept" else None,
        metadata=metadata,
        is_damaged=bool(opened.damage),
    )


def turned(opened: StoredImage) -> np.ndarray:
    """Turn an array of RGB upright: (H,W,3) uint8. The array itself is returned if it is upright, without a second copy."""
    if opened.orientation == 1:
        return np.require(opened.pixels, requirements=("C", "W"))
    rgb = np.empty((*upright_shape(opened), 3), np.uint8)
    AS_STORED[opened.orientation](rgb)[:] = opened.pixels
    return rgb


def converted(
    opened: StoredImage,
    transform: ImageCms.ImageCmsTransform | None,
    conversion: Conversion | None,
    matte: tuple[int, ...] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a picture to sRGB, strip by strip, and turn it upright.

    Args:
        transform: from the profile of the picture.
        conversion: from the colour space that the file declares by numbers.
        matte: the colour that a transparent picture is laid onto.

    Returns: RGB (H,W,3) uint8, and alpha (H,W) uint8 where it is kept.
    """
    shape = upright_shape(opened)
    rgb = np.empty((*shape, 3), np.uint8)
    alpha = np.empty(shape, np.uint8) if opened.has_alpha and matte is None else None
    as_stored = AS_STORED[opened.orientation]
    for rows in row_strips(*opened.size):
        strip = opened.strip(rows)
        if opened.alpha is not None:
            veil = Image.fromarray(opened.alpha[rows])
        elif opened.has_alpha:
            strip = in_mode(strip, "RGBA")
            veil = strip.getchannel("A")
        colours = Image.fromarray(conversion(opened.samples(rows))) if conversion else in_mode(strip, opened.mode)
        if transform:
            colours = in_srgb(colours, transform)
        colours = in_mode(colours, "RGB")
        if alpha is not None:
            as_stored(alpha)[rows] = np.asarray(veil)
        elif opened.has_alpha:
            colours = Image.composite(colours, Image.new("RGB", strip.size, matte), veil)
        as_stored(rgb)[rows] = np.asarray(colours)
    if alpha is not None:
        fill_hidden(rgb, alpha)
    return rgb, alpha


def upright_shape(opened: StoredImage) -> tuple[int, int]:
    """(height, width) of the upright picture."""
    width, height = opened.size
    return (width, height) if opened.orientation >= 5 else (height, width)


def colour_treatment(opened: StoredImage, keep: bool) -> tuple[str, Conversion | None]:
    """Return how to treat the colours of an image without a profile, and the conversion."""
    gray, space = opened.mode == "L", opened.space
    nothing = f"ignored: {opened.ignored}" if opened.ignored else "none"
    if space is None or opened.mode == "CMYK" or space.is_srgb or (gray and replace(space, primaries=SRGB).is_srgb):
        return nothing, None
    if keep:
        # The numbers have no place in what we write.
        return f"ignored: {space.name}", None
    dtype = np.dtype(np.uint8) if isinstance(opened.pixels, Image.Image) else opened.pixels.dtype
    try:
        return "converted", Conversion(space, dtype, gray, opened.brightest if space.is_hdr else 0)
    except ValueError as e:
        return f"ignored: {e}", None


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """As Pillow's convert, which copies what is in the mode already."""
    return image if image.mode == mode else image.convert(mode)
