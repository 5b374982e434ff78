"""Decode image files to upright sRGB pixels."""

import io
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from imagemill.pipeline.images.colour import SRGB, SrgbConversion
from imagemill.pipeline.images.config import MAX_PIXELS, ImageConfig
from imagemill.pipeline.images.errors import DAMAGED_IMAGE, DECODER_ERRORS, ImageError, broken_image
from imagemill.pipeline.images.fitting import apply_fitting, plan_fitting
from imagemill.pipeline.images.icc import apply_transform, choose_transform
from imagemill.pipeline.images.metadata import Metadata, select_metadata
from imagemill.pipeline.images.orientation import TO_STORED_ORIENTATION
from imagemill.pipeline.images.readers import select_reader
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.readers.signatures import HEAD_BYTES, identify_format, unreadable_error
from imagemill.pipeline.images.readers.zero_fill import find_zero_fill
from imagemill.pipeline.images.samples import row_strips
from imagemill.pipeline.images.transparency import fill_hidden
from imagemill.pipeline.store_failures import reason


@dataclass
class DecodedImage:
    """A decoded image, and what its file says about it."""

    rgb: np.ndarray
    """(H,W,3) uint8, upright. Colours of fully transparent pixels are interpolated from visible ones."""
    alpha: np.ndarray | None
    """(H,W) uint8, upright; None for an opaque image, or one that was flattened onto a colour."""
    format: str
    is_gray: bool
    orig_width: int
    """Width in the file, before the EXIF orientation is applied."""
    orig_height: int
    exif_orientation: int
    bit_depth: int
    """Bits per sample in the file: 1 for bilevel images, else at least 8."""
    frames: int
    has_alpha: bool
    """Whether the file has transparency."""
    icc: str
    """How the colours were treated: "none" (they are sRGB, or the file does not say), "converted" (to sRGB), "kept"
    (with their profile), "unreadable" (the profile is damaged and was ignored), or "ignored: " and what was
    ignored."""
    profile: bytes | None = None
    """The ICC profile of `rgb`, if it was kept."""
    metadata: Metadata = field(default_factory=Metadata)
    """The metadata for the output."""
    is_damaged: bool = False
    """Whether some pixels are wrong or missing, because the file is damaged."""
    fitting: dict[str, int] = field(default_factory=dict)
    """How the upright image was resized and cropped: columns of a row (schema.FITTING)."""


def decode_image(
    data: bytes,
    max_pixels: int | None = None,
    config: ImageConfig = ImageConfig(),
    accept_damaged: bool = False,
) -> DecodedImage:
    """Decode an image file to upright RGB with 8 bits per sample, then resize and crop it.

    Of an animation, the first frame is decoded. Broken metadata and broken profiles are dropped and do not fail the image.

    Args:
        data: the content of the file.
        max_pixels: limit of width × height, checked on the header before anything is decoded. Default: MAX_PIXELS, and the
            error does not suggest to raise the limit. Pass a number where the user can set the key `max_pixels`.
        config: how to treat transparency, colour profiles and metadata, and how to resize and crop the image.
        accept_damaged: whether to return an image of which some pixels are wrong or missing.

    Raises:
        ImageError: with the class EmptyFile, UnknownFormat, UnsupportedFormat, TooManyPixels, UnsupportedMode,
            DamagedImage, BrokenImage or TooSmall.
    """
    if not data:
        raise ImageError("EmptyFile", "the file is empty. Restore the file.")
    head, stream = data[:HEAD_BYTES], io.BytesIO(data)
    # `convert_image` closes the stream after decoding: memory must not hold both a large file and its pixels.
    del data
    try:
        reader = select_reader(stream.getvalue())
        check_pixel_limit(reader.read_size(stream), max_pixels)
        # A reader may close the stream, so search for damage first.
        zero_fill = find_zero_fill(identify_format(head), stream.getvalue())
        stored = reader.read(stream)
        stored.damage = stored.damage or zero_fill
        if stored.damage and not accept_damaged:
            raise ImageError(DAMAGED_IMAGE, f"{stored.damage}. Part of the image is damaged or missing. Restore the file.")
        return fit_image(convert_image(stored, stream, config), config)
    except UnidentifiedImageError:
        raise unreadable_error(head) from None
    except DECODER_ERRORS as e:
        raise broken_image(reason(e).rstrip(".")) from None


def decode_stored_samples(data: bytes) -> np.ndarray:
    """Decode a file to upright samples of the stored depth, without colour conversion.

    Returns:
        (H,W) gray or (H,W,3) RGB, uint8 or uint16, scaled to the full range of the dtype.

    Raises:
        ImageError: as the reader of the format.
    """
    stored = select_reader(data).read(io.BytesIO(data))
    samples = stored.colour_samples(slice(0, stored.size[1]))
    upright = np.empty((*upright_shape(stored), *samples.shape[2:]), samples.dtype)
    TO_STORED_ORIENTATION[stored.orientation](upright)[:] = samples
    return upright


def check_pixel_limit(size: tuple[int, int], max_pixels: int | None) -> None:
    """Check (width, height) against a limit on their product; see `decode_image`.

    Raises:
        ImageError: with the class TooManyPixels.
    """
    width, height = size
    pixels, limit = width * height, MAX_PIXELS if max_pixels is None else max_pixels
    if pixels <= limit:
        return
    text = f"{width}×{height} = {pixels / 1e6:.1f} MP is over "
    if max_pixels is None:
        text += f"the limit of {limit / 1e6:g} MP. Make the image smaller."
    else:
        text += f"max_pixels={limit} ({limit / 1e6:g} MP). Make the image smaller, or raise the limit: "
        text += f"--set max_pixels={pixels}"
    raise ImageError("TooManyPixels", text)


def read_pixel_count(data: bytes) -> int:
    """Read width × height from the header of an image file, as a pixel budget counts it.

    Returns:
        More than width × height for formats that take more memory to decode; 0 if the header cannot be read.
    """
    try:
        reader = select_reader(data)
        width, height = reader.read_size(io.BytesIO(data))
    except (ImageError, UnidentifiedImageError, *DECODER_ERRORS):
        return 0
    return width * height * reader.budget_factor


def convert_image(stored: StoredImage, stream: io.BytesIO, config: ImageConfig) -> DecodedImage:
    """Turn a stored image upright, and convert its colours. Closes `stream`, its file."""
    width, height = stored.size
    keep_colours = config.icc == "keep"
    icc, transform = choose_transform(stored.profile, stored.mode, keep_colours)
    conversion = None
    if not stored.profile:
        icc, conversion = choose_conversion(stored, keep_colours)
    metadata = select_metadata(stored, config.metadata, icc == "converted")
    # The EXIF of a TIFF is the whole file: release it.
    stored.exif = None
    stream.close()
    if stored.is_rgb_array and not transform and not conversion:
        rgb, alpha = make_upright(stored), None
    else:
        rgb, alpha = convert_pixels(stored, transform, conversion, config.matte)
    is_flattened_onto_colour = stored.has_alpha and config.matte is not None and len(set(config.matte)) > 1
    return DecodedImage(
        rgb=rgb,
        alpha=alpha,
        format=stored.format,
        is_gray=stored.mode == "L" and not is_flattened_onto_colour,
        orig_width=width,
        orig_height=height,
        exif_orientation=stored.orientation,
        bit_depth=stored.bit_depth,
        frames=stored.frames,
        has_alpha=stored.has_alpha,
        icc=icc,
        profile=stored.profile if icc == "kept" else None,
        metadata=metadata,
        is_damaged=bool(stored.damage),
    )


def fit_image(decoded: DecodedImage, config: ImageConfig) -> DecodedImage:
    """Resize and crop a decoded image.

    Raises:
        ImageError: with the class TooSmall.
    """
    if config.resize == config.crop == "none":
        return decoded
    height, width = decoded.rgb.shape[:2]
    fitting = plan_fitting(width, height, config)
    decoded.fitting = fitting.columns(width, height)
    decoded.rgb = apply_fitting(decoded.rgb, fitting)
    if decoded.alpha is not None:
        decoded.alpha = apply_fitting(decoded.alpha, fitting)
    return decoded


def make_upright(stored: StoredImage) -> np.ndarray:
    """Return an RGB array upright, (H,W,3) uint8, without a copy if it already is upright."""
    if stored.orientation == 1:
        return np.require(stored.pixels, requirements=("C", "W"))
    rgb = np.empty((*upright_shape(stored), 3), np.uint8)
    TO_STORED_ORIENTATION[stored.orientation](rgb)[:] = stored.pixels
    return rgb


def convert_pixels(
    stored: StoredImage,
    transform: ImageCms.ImageCmsTransform | None,
    conversion: SrgbConversion | None,
    matte: tuple[int, ...] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a stored image to upright sRGB, strip by strip.

    Args:
        stored: the image.
        transform: from the colours of its ICC profile to sRGB.
        conversion: from the colour space that the file declares without a profile.
        matte: (R,G,B) of the colour that a transparent image is flattened onto; None to keep alpha.

    Returns:
        RGB (H,W,3) uint8, and alpha (H,W) uint8 or None.
    """
    shape = upright_shape(stored)
    rgb = np.empty((*shape, 3), np.uint8)
    alpha = np.empty(shape, np.uint8) if stored.has_alpha and matte is None else None
    as_stored = TO_STORED_ORIENTATION[stored.orientation]
    for rows in row_strips(*stored.size):
        strip = stored.pillow_strip(rows)
        if stored.alpha is not None:
            alpha_strip = Image.fromarray(stored.alpha[rows])
        elif stored.has_alpha:
            strip = convert_mode(strip, "RGBA")
            alpha_strip = strip.getchannel("A")
        if conversion:
            colours = Image.fromarray(conversion(stored.colour_samples(rows)))
        else:
            colours = convert_mode(strip, stored.mode)
        if transform:
            colours = apply_transform(colours, transform)
        colours = convert_mode(colours, "RGB")
        if alpha is not None:
            as_stored(alpha)[rows] = np.asarray(alpha_strip)
        elif stored.has_alpha:
            colours = Image.composite(colours, Image.new("RGB", strip.size, matte), alpha_strip)
        as_stored(rgb)[rows] = np.asarray(colours)
    if alpha is not None:
        fill_hidden(rgb, alpha)
    return rgb, alpha


def upright_shape(stored: StoredImage) -> tuple[int, int]:
    """Return (height, width) of the upright image."""
    width, height = stored.size
    return (width, height) if stored.orientation >= 5 else (height, width)


def choose_conversion(stored: StoredImage, keep: bool) -> tuple[str, SrgbConversion | None]:
    """Choose how to treat the colours of an image without an ICC profile.

    Returns:
        The value of `DecodedImage.icc`, and the conversion to sRGB if one is needed.
    """
    is_gray, space = stored.mode == "L", stored.colour_space
    if space is None or stored.mode == "CMYK" or space.is_srgb or (is_gray and replace(space, primaries=SRGB).is_srgb):
        return f"ignored: {stored.ignored_colours}" if stored.ignored_colours else "none", None
    if keep:
        # The output formats cannot store a colour space without a profile.
        return f"ignored: {space.name}", None
    dtype = np.dtype(np.uint8) if isinstance(stored.pixels, Image.Image) else stored.pixels.dtype
    try:
        return "converted", SrgbConversion(space, dtype, is_gray, stored.max_sample if space.is_hdr else 0)
    except ValueError as e:
        return f"ignored: {e}", None


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a Pillow mode, without a copy if the image already has the mode."""
    return image if image.mode == mode else image.convert(mode)
