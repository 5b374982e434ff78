"""Stylize: render the content of an image in the style of one or several style images."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from imagemill.models.tasks.task import Params, Task

GATYS_SIDE = 512
GATYS_MAX_SIDE = 4096
METHOD_PARAMS = {"gatys": ("alpha", "beta", "steps", "optimizer", "start"), "adain": ("strength",)}
"""Parameters that only one method uses."""


class StylizeParams(Params):
    """Parameters of `stylize`."""

    style: list[str] = Field(
        min_length=1, description="Paint in the style of this image, a file or s3:// URL. Repeat the option to mix styles."
    )
    style_weights: list[float] | None = Field(
        None, description="Weight the styles, one number for each. Without weights, all styles count equally."
    )
    method: Literal["adain", "gatys"] = Field(
        "adain",
        description="Transfer the style in one pass through a trained network (adain), or optimise the pixels of each image "
        "(gatys; takes the checkpoint vgg19-dcbb9e9d.pth, or random).",
    )
    size: int | None = Field(
        None,
        ge=16,
        le=16384,
        description=f"Reduce larger images to this long side, in pixels. gatys reduces to {GATYS_SIDE} by default.",
    )
    preserve_color: bool = Field(False, description="Keep the colours of the image and transfer only luminance.")
    strength: float = Field(1.0, ge=0, le=1, description="adain: blend from the unchanged image (0) to the full style (1).")
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False, description="gatys: weight the content loss.")
    beta: float = Field(1.0, ge=0, allow_inf_nan=False, description="gatys: weight the style loss.")
    steps: int = Field(150, ge=1, le=100_000, description="gatys: run this many steps of the optimiser.")
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs",
        description="gatys: optimise one image at a time (lbfgs), or several together in many more steps (adam).",
    )
    start: Literal["content", "noise"] = Field("content", description="gatys: start from the image (content) or from noise.")
    content_layer: str | None = Field(
        None, description="Measure content at this layer. Default: relu4_1, or the last layer."
    )
    style_layers: dict[str, float] | None = Field(
        None,
        description="Measure style at these layers, with these weights. Default: 1 for the first layer of each block.",
    )

    @field_validator("style_weights", "style_layers")
    @classmethod
    def check_weights(cls, value: Any) -> Any:
        """Refuse weights that are negative, not finite, or all zero."""
        weights = list(value.values()) if isinstance(value, dict) else value
        if weights is not None and not (all(w >= 0 and math.isfinite(w) for w in weights) and sum(weights) > 0):
            raise ValueError("weights must be finite and at least 0, and one must be above 0")
        return value

    @model_validator(mode="after")
    def check_combination(self) -> "StylizeParams":
        """Refuse parameters that contradict each other."""
        if self.style_weights is not None and len(self.style_weights) != len(self.style):
            raise ValueError(
                f"style_weights: {len(self.style_weights)} weights for {len(self.style)} style images. Give one for each"
            )
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0, so there is no loss to minimise. Set one above 0")
        if self.method == "gatys" and (self.size or 0) > GATYS_MAX_SIDE:
            raise ValueError(
                f"size={self.size}: must be at most {GATYS_MAX_SIDE} for gatys, which keeps all features in memory"
            )
        for method, keys in METHOD_PARAMS.items():
            changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if method != self.method and changed:
                raise ValueError(f"{changed[0]}: only the method {method} uses it, but method={self.method}. Remove it")
        return self


class Stylize(Task):
    """Transfer the style of style images to other images."""

    name = "stylize"
    summary = "Paint photos in the style of one image, or of several."
    default_checkpoint = "stylize-small"
    Params = StylizeParams
    columns = {"content_loss": float, "style_loss": float, "losses": list[float]}
    worst = ("highest", "style_loss")
    style_param = "style"
    min_style_side = 32
