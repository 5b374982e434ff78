"""Stylize: the content of an image, painted as one or several style images are."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from imagemill.models.tasks.task import Params, Task

GATYS_SIDE = 512
FITS = {"gatys": ("alpha", "beta", "steps", "optimizer", "start"), "adain": ("strength",)}


class StylizeParams(Params):
    style: list[str] = Field(min_length=1, description="files or s3:// URLs of style images")
    style_weights: list[float] | None = Field(None, description="of the styles, one each; equal when absent")
    method: Literal["adain", "gatys"] = Field(
        "adain", description="adain: one pass through a trained network; gatys: the image itself is optimised"
    )
    size: int | None = Field(
        None, ge=16, le=16384, description=f"larger images are reduced to this long side; {GATYS_SIDE} for gatys when absent"
    )
    preserve_color: bool = Field(False, description="transfer luminance alone: the colours stay those of the image")
    strength: float = Field(1.0, ge=0, le=1, description="adain: between the image, 0, and its full restyling, 1")
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False, description="gatys: weight of the content loss")
    beta: float = Field(1.0, ge=0, allow_inf_nan=False, description="gatys: weight of the style loss")
    steps: int = Field(150, ge=1, le=100_000, description="gatys: steps of the optimiser")
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs", description="gatys: lbfgs does one image at a time; adam several together, and needs many more steps"
    )
    start: Literal["content", "noise"] = Field("content", description="gatys: what the optimised image begins as")
    content_layer: str | None = Field(None, description="where content is measured; relu4_1, or the last layer, when absent")
    style_layers: dict[str, float] | None = Field(
        None, description="weights of the layers where style is measured; 1 for the first of each block when absent"
    )

    @field_validator("style_weights", "style_layers")
    @classmethod
    def weights_are_usable(cls, value: Any) -> Any:
        weights = list(value.values()) if isinstance(value, dict) else value
        if weights is not None and not (all(w >= 0 and math.isfinite(w) for w in weights) and sum(weights) > 0):
            raise ValueError("weights are finite, not negative, and not all zero")
        return value

    @model_validator(mode="after")
    def belong_together(self) -> "StylizeParams":
        if self.style_weights is not None and len(self.style_weights) != len(self.style):
            raise ValueError(f"{len(self.style_weights)} style_weights for {len(self.style)} styles")
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: there is nothing to optimise")
        if self.method == "gatys" and (self.size or 0) > 4096:
            raise ValueError(f"size = {self.size}: gatys holds every feature in memory; 4096 is the most")
        for method, keys in FITS.items():
            changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if method != self.method and changed:
                raise ValueError(f"{changed[0]} is a parameter of {method}, and the method is {self.method}")
        return self


class Stylize(Task):
    name = "stylize"
    default_checkpoint = "stylize-small"
    Params = StylizeParams
    columns = {"content_loss": float, "style_loss": float, "losses": list[float]}
    worst = ("highest", "style_loss")
    style_param = "style"
    min_style_side = 32
