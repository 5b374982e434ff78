"""Inpaint: what is missing (holes, scratches, lost pixels, one colour plane) is filled; the rest stays as it is."""

from typing import Any, Literal

from pydantic import Field

from imagemill.models.tasks.task import Params, Task


class InpaintParams(Params):
    missing: Literal["file", "alpha", "key", "red", "green", "blue", "random"] = Field(
        "file",
        description="what is missing: where the mask beside the image (NAME.mask.png) is bright; where alpha is 0; where "
        "the colour is `key`; one colour plane; or pixels drawn at random, for measuring",
    )
    key: str = Field("#ff00ff", pattern="^#[0-9a-fA-F]{6}$", description="colour of what is missing")
    tolerance: int = Field(0, ge=0, le=255, description="largest difference from `key` in a channel, in 8-bit levels")
    share: float = Field(
        0.5, ge=0, lt=1, description="share of the pixels that random damage takes; in squares 0.95 is the most"
    )
    block: int = Field(1, ge=1, le=256, description="side of the squares that random damage takes, in pixels")


class Inpaint(Task):
    name = "inpaint"
    default_checkpoint = "inpaint-small"
    Params = InpaintParams
    columns = {"missing_share": float}
    worst = ("highest", "missing_share")
    exact = True

    def wants_mask(self, params: Any) -> bool:
        return bool(params.missing == "file")
