"""Inpaint: fill missing pixels (holes, scratches, lost pixels, one colour plane). Known pixels stay bit-identical."""

from typing import Any, Literal

from pydantic import Field, model_validator

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks.task import Params, Task

PLANES = ("red", "green", "blue")


class InpaintParams(Params):
    """Parameters of `inpaint`."""

    missing: Literal["file", "alpha", "key", "red", "green", "blue", "random"] = Field(
        "file",
        description="Fill the pixels where the mask file next to the image, NAME.mask.png, is bright (file), where alpha is "
        "0 (alpha), or where the colour is --key (key); fill one colour plane (red, green, blue); or fill pixels that are "
        "chosen at random, to measure quality (random).",
    )
    key: str = Field(
        "#ff00ff", pattern="^#[0-9a-fA-F]{6}$", description="Fill pixels of this colour, #rrggbb. Implies missing=key."
    )
    tolerance: int = Field(
        0, ge=0, le=255, description="Accept this difference from --key in each channel, in 8-bit levels."
    )
    share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Remove this share of the pixels as random damage; with a block above 1 at most 0.95.",
    )
    block: int = Field(1, ge=1, le=256, description="Remove squares of this side as random damage, in pixels.")

    @model_validator(mode="before")
    @classmethod
    def key_implies_missing(cls, values: Any) -> Any:
        """Set `missing` to key if only the colour is given: the colour has no other use."""
        if isinstance(values, dict) and values.get("key") is not None and "missing" not in values:
            return {**values, "missing": "key"}
        return values


class Inpaint(Task):
    """Fill the missing pixels of images."""

    name = "inpaint"
    summary = "Fill holes, scratches, lost pixels or a missing colour plane, and keep all other pixels bit-identical."
    default_checkpoint = "inpaint-small"
    Params = InpaintParams
    columns = {"missing_share": float}
    worst = ("highest", "missing_share")
    needs_lossless = True

    def needs_mask(self, params: Any) -> bool:
        """Return whether `missing` is "file"."""
        return bool(params.missing == "file")

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Refuse a missing plane for a network that takes one mask for all planes."""
        if params.missing in PLANES and card.contract:
            raise CheckpointError(
                f"params.missing={params.missing!r}: checkpoint {name} fills whole pixels, not one plane. Use the "
                f"checkpoint {self.default_checkpoint}"
            )
