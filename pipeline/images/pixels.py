"""File bytes to pixels and back: header check, pixel limit, orientation, modes, formats."""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline.images.headers import depth_of, webp_size
from pipeline.images.metadata import Exif, carried_exif, carried_xmp, in_tiff, writer_options
from pipeline.images.profiles import in_srgb, treatment

# Formats by what a decoder has to do with outside data; Pillow knows many more, each one an attack surface.
# (JPEG's reader opens MPO as well.)
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# What people have and Pillow cannot read, by what stands in such a file from a byte on. (An AVIF may begin as "mif1" too: it
# is tried first.)
UNSUPPORTED = {
    "HEIC": (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")),
    "JPEG XL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
}
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
WITH_ALPHA = ("PNG", "TIFF", "WEBP", "AVIF")
EXIF_ORIENTATION = 0x0112
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
# Pixels that are converted at a time: what is held beside the decoded image and the array stays small.
STRIP_PIXELS = 2_000_000
# What broken files raise in Pillow; SyntaxError is how its PNG reader reports a bad chunk, RuntimeError is AVIF's.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
)
MAX_PIXELS = 40_000_000
"""What a run takes unless it is told otherwise."""
Image.MAX_IMAGE_PIXELS = None  # `decode` checks its own limit on the header, before Pillow decodes anything
# A thread for each image is what the actors have; with more, AVIF's bytes would hang on the machine that made them.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class PixelConfig(BaseModel):
    """What becomes of all that a picture is beside its pixels. It changes outputs, so it is part of their version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: Annotated[str, StringConstraints(pattern="^(keep|#[0-9a-fA-F]{6})$", to_lower=True)] = Field(
        "keep", description="keep: carried through; #rrggbb: laid onto this colour"
    )
    icc: Literal["convert", "keep"] = Field("convert", description="colours to sRGB, or untouched with their profile")
    metadata: Literal["keep", "strip", "strip_gps"] = Field(
        "keep", description="EXIF and XMP; strip_gps: EXIF but the place"
    )
    format: Literal["jpeg", "png", "webp", "tiff", "avif"] | None = Field(None, description="the source's when absent")
    quality: int = Field(95, ge=1, le=100, description="of JPEG, WebP and AVIF")

    @field_validator("alpha", mode="before")
    @classmethod
    def is_quoted(cls, value: Any) -> Any:
        if value is None:
            raise ValueError('keep or "#rrggbb" is expected; for YAML a bare # begins a comment, so quote it')
        return value

    @property
    def matte(self) -> tuple[int, ...] | None:
        """(R,G,B) of the colour that transparent pictures are laid onto."""
        return None if self.alpha == "keep" else tuple(bytes.fromhex(self.alpha[1:]))


class ImageError(Exception):
    """One image that cannot be done: becomes a reject, never ends a run."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass
class Picture:
    """A decoded image and what its file said of itself."""

    rgb: np.ndarray
    """(H,W,3) uint8, upright."""
    alpha: np.ndarray | None
    """(H,W) uint8, upright; None too where it was laid onto a colour."""
    format: str
    gray: bool
    orig_width: int
    orig_height: int
    exif_orientation: int
    bit_depth: int
    frames: int
    has_alpha: bool
    """Whether the file has transparency."""
    icc: str
    """What was done about its profile: "none" (there is none, or it is sRGB's), "converted", "kept" or "unreadable"."""
    profile: bytes | None = None
    """The ICC profile of `rgb`, where it was kept."""
    exif: Exif | None = None
    """What the output carries, of the upright picture."""
    xmp: bytes | None = None


def decode(data: bytes, max_pixels: int = MAX_PIXELS, config: PixelConfig = PixelConfig()) -> Picture:
    """Bytes of an image file to upright RGB.

    The first frame of an animation; 16-bit samples are scaled to 8; alpha is kept beside the colours, or they are laid onto
    a colour. Metadata and profiles that are broken are left out: the picture is what counts.

    Raises: ImageError with the class EmptyFile, UnknownFormat, UnsupportedFormat, TooManyPixels, UnsupportedMode or
        BrokenImage.
    """
    if not data:
        raise ImageError("EmptyFile", "the file is empty")
    head, stream = data[:64], io.BytesIO(data)
    # `to_picture` closes the stream once the file is decoded: of a large one there is no room for both file and pixels.
    del data
    try:
        if size := webp_size(head):
            check_size(size, max_pixels)
        with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=FORMATS) as image:
            check_size(image.size, max_pixels)
            return to_picture(image, stream, config)
    except UnidentifiedImageError:
        for name, (place, heads) in UNSUPPORTED.items():
            if head.startswith(heads, place):
                raise ImageError("UnsupportedFormat", f"{name} is not supported by this Pillow; convert it") from None
        raise ImageError("UnknownFormat", f"not an image in a known format; begins with {head[:16]!r}") from None
    except BROKEN as e:
        raise ImageError("BrokenImage", f"{type(e).__name__}: {e}") from None


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raises: ImageError for (width, height) of more than `max_pixels`."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            "TooManyPixels",
            f"{width}×{height} = {width * height / 1e6:.1f} MP is over the limit of {max_pixels / 1e6:g} MP",
        )


def pixels_of(data: bytes) -> int:
    """Width × height by the header; 0 where there is none that can be read."""
    if size := webp_size(data):
        return size[0] * size[1]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except (UnidentifiedImageError, *BROKEN):
        return 0


def to_picture(image: Image.Image, stream: io.BytesIO, config: PixelConfig) -> Picture:
    """An opened image as `decode` gives it. Closes `stream`, its file."""
    data = stream.getvalue()
    width, height = image.size
    source_format = str(image.format)
    frames = getattr(image, "n_frames", 1)
    bit_depth = depth_of(image, data)
    image.load()
    deep = image.mode.startswith("I")
    gray = deep or image.mode in ("1", "L", "LA", "La")
    if source_format == "PNG":
        gray = gray or data[25] in (0, 4)  # the header's colour type: gray, gray with alpha
    if image.mode == "F" or (image.mode == "I" and source_format not in ("PNG", "PPM")):
        raise ImageError("UnsupportedMode", f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples")
    orientation = orientation_of(image)
    transparent = image.has_transparency_data and not deep
    mode = "L" if gray else "CMYK" if image.mode == "CMYK" else "RGB"
    profile = image.info.get("icc_profile")
    icc, transform = treatment(profile, mode, config.icc == "keep")
    block = data if source_format == "TIFF" else image.info.get("exif")
    exif = None if config.metadata == "strip" else carried_exif(block, config.metadata == "keep", icc == "converted")
    xmp = carried_xmp(image) if config.metadata == "keep" else None
    del data, block
    stream.close()
    shape = image.size if orientation >= 5 else image.size[::-1]
    rgb = np.empty((*shape, 3), np.uint8)
    alpha = np.empty(shape, np.uint8) if transparent and config.matte is None else None
    for rows in strips(*image.size):
        strip = image if rows == slice(0, image.height) else image.crop((0, rows.start, image.width, rows.stop))
        if deep:
            strip = Image.fromarray(((np.asarray(strip).astype(np.uint32) + 128) // 257).astype(np.uint8))
        if transparent:
            strip = in_mode(strip, "RGBA")
        colours = in_mode(strip, mode)
        if transform:
            colours = in_srgb(colours, transform)
        colours = in_mode(colours, "RGB")
        if alpha is not None:
            AS_STORED[orientation](alpha)[rows] = np.asarray(strip.getchannel("A"))
        elif transparent:
            colours = Image.composite(colours, Image.new("RGB", strip.size, config.matte), strip.getchannel("A"))
        AS_STORED[orientation](rgb)[rows] = np.asarray(colours)
    return Picture(
        rgb=rgb,
        alpha=alpha,
        format=source_format,
        gray=gray and not (transparent and config.matte and len(set(config.matte)) > 1),
        orig_width=width,
        orig_height=height,
        exif_orientation=orientation,
        bit_depth=bit_depth,
        frames=frames,
        has_alpha=transparent,
        icc=icc,
        profile=profile if icc == "kept" else None,
        exif=exif,
        xmp=xmp,
    )


def strips(width: int, height: int) -> Iterator[slice]:
    """The rows of an image, some STRIP_PIXELS at a time."""
    step = max(1, STRIP_PIXELS // width)
    return (slice(top, min(height, top + step)) for top in range(0, height, step))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """As Pillow's convert, which copies what is in the mode already."""
    return image if image.mode == mode else image.convert(mode)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be understood."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in AS_STORED else 1


def output_format(source_format: str, exact: bool = False, asked: str | None = None) -> str:
    """The format an output is written in: what is asked for, or the source's.

    PNG stands in for GIF (its palette would ruin the result) and JPEG 2000 (Pillow's writer has no place for profile and
    metadata), JPEG for MPO.

    Args: exact: pixels must be kept to the last bit, so PNG stands in for the lossy formats.
    """
    if asked:
        return asked.upper()
    if exact and source_format in LOSSY:
        return "PNG"
    return {"GIF": "PNG", "JPEG2000": "PNG", "MPO": "JPEG"}.get(source_format, source_format)


def to_pillow(rgb: np.ndarray, picture: Picture, image_format: str) -> Image.Image:
    """What Pillow encodes, of its own memory: gray where the picture is, with alpha where the format has it."""
    if picture.gray:
        height, width = rgb.shape[:2]
        image = Image.new("L", (width, height))
        for rows in strips(width, height):
            image.paste(Image.fromarray(rgb[rows]).convert("L"), (0, rows.start))
    else:
        image = Image.fromarray(rgb)
    if picture.alpha is not None and image_format in WITH_ALPHA:
        image.putalpha(Image.fromarray(picture.alpha))
    return image


def to_file(image: Image.Image, picture: Picture, image_format: str, quality: int) -> bytes:
    """An image of `to_pillow` as a file, with the profile, EXIF and XMP of its picture."""
    options = writer_options(image_format, picture.exif, picture.xmp)
    if picture.profile and (picture.gray or picture.profile[16:20] != b"GRAY"):
        options["icc_profile"] = picture.profile
    data = encode_image(image, image_format, quality, **options)
    return in_tiff(data, picture.exif, picture.xmp) if image_format == "TIFF" and (picture.exif or picture.xmp) else data


def encode_rgb(rgb: np.ndarray, image_format: str) -> bytes:
    """(H,W,3) uint8 to a file in a format."""
    return encode_image(Image.fromarray(rgb), image_format)


def encode_image(image: Image.Image, image_format: str, quality: int = 95, **beside: Any) -> bytes:
    """JPEG, WebP and AVIF at a quality (JPEG and AVIF in 4:4:4), the others lossless.

    Args: beside: what Pillow's writer puts beside the pixels.
    """
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality},
        "AVIF": {"quality": quality, "subsampling": "4:4:4"},
        "PNG": {"compress_level": 1},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    out = io.BytesIO()
    image.save(out, image_format, **options.get(image_format, {}), **beside)
    return out.getvalue()
