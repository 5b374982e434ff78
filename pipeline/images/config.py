"""The options for decoding and encoding images: `image` in a run's configuration."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MAX_PIXELS = 40_000_000
"""What a run takes unless it is told otherwise."""


class ImageConfig(BaseModel):
    """What becomes of all that a picture is beside its pixels. It changes outputs, so it is part of their version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: Annotated[str, StringConstraints(pattern="^(keep|#[0-9a-fA-F]{6})$", to_lower=True)] = Field(
        "keep", description="keep: carried through; #rrggbb: laid onto this colour"
    )
    icc: Literal["convert", "keep"] = Field("convert", description="colours to sRGB, or untouched with their profile")
    metadata: Literal["keep", "strip", "strip_gps"] = Field(
        "keep",
        description="EXIF, XMP, IPTC, texts, resolution; strip_gps: resolution and EXIF without the place; strip: nothing",
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
