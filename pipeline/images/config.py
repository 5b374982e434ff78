"""The options of decoding and encoding: the key `image` of a run's configuration."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MAX_PIXELS = 40_000_000
"""Default limit of width × height of a source image."""
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF", "HEIC", "RAW")
"""Formats that store pixels with loss, and camera raw, whose outputs are JPEG."""


class ImageConfig(BaseModel):
    """How transparency, colour profiles and metadata are treated, how images are resized, and how outputs are encoded.

    The options change outputs, so they are part of an image's version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: Annotated[str, StringConstraints(pattern="^(keep|#[0-9a-fA-F]{6})$", to_lower=True)] = Field(
        "keep", description="keep: keep transparency. #rrggbb: flatten transparent images onto this colour."
    )
    icc: Literal["convert", "keep"] = Field(
        "convert", description="convert: convert colours to sRGB. keep: leave colours unchanged and embed their profile."
    )
    metadata: Literal["keep", "strip", "strip_gps"] = Field(
        "keep",
        description="keep: copy EXIF, XMP, IPTC, texts and resolution to the output. strip_gps: copy only resolution "
        "and EXIF without GPS. strip: copy nothing.",
    )
    format: Literal["jpeg", "png", "webp", "tiff", "avif"] | None = Field(
        None, description="Write outputs in this format. Default: the format of each source."
    )
    quality: int = Field(95, ge=1, le=100, description="Encode JPEG, WebP and AVIF outputs at this quality.")
    resize: str = Field(
        "none",
        pattern=r"^(none|max:[1-9]\d{0,5}|bucket:[1-9]\d{0,9}:[1-9]\d{0,4})$",
        description="Resize images before the network. max:N: reduce larger images to a long side of N pixels. "
        "bucket:AREA:STEP: choose the size of at most AREA pixels with sides that are multiples of STEP and the nearest "
        "aspect ratio, up to 4:1; resize each image to cover it, and cut off the rest on both sides. bucket:1048576:64 "
        "gives sizes as for SDXL, bucket:262144:512 squares of 512 pixels.",
    )
    crop: str = Field(
        "none",
        pattern=r"^(none|multiple:[1-9]\d{0,4})$",
        description="Crop images, after they are resized. multiple:N: cut the sides to multiples of N pixels, around the "
        "center, so that a network needs no padding.",
    )

    @field_validator("alpha", mode="before")
    @classmethod
    def require_quotes(cls, value: Any) -> Any:
        """Explain an unquoted #rrggbb, which YAML reads as a comment."""
        if value is None:
            raise ValueError('must be keep or "#rrggbb". YAML reads an unquoted # as a comment, so quote the colour')
        return value

    @field_validator("resize")
    @classmethod
    def check_bucket(cls, value: str) -> str:
        """Reject buckets without a size."""
        kind, *numbers = value.split(":")
        if kind == "bucket" and int(numbers[0]) < int(numbers[1]) ** 2:
            raise ValueError(f"AREA must be at least STEP × STEP = {int(numbers[1]) ** 2} pixels")
        return value

    @property
    def matte(self) -> tuple[int, ...] | None:
        """(R,G,B) to flatten transparent images onto; None to keep transparency."""
        return None if self.alpha == "keep" else tuple(bytes.fromhex(self.alpha[1:]))
