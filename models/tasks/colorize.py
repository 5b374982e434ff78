"""Colorize: predict chroma from luma. The luma of the output is exactly the luma of the source."""

from pydantic import Field

from imagemill.models.tasks.task import Params, Task


class ColorizeParams(Params):
    """Parameters of `colorize`."""

    saturation: float = Field(
        1.0,
        ge=0,
        le=4,
        description="Multiply the predicted chroma by this factor. Predictions average over all plausible colours, so they "
        "are paler than photos.",
    )


class Colorize(Task):
    """Predict the colours of gray or faded images."""

    name = "colorize"
    summary = "Predict the colours of gray photos and keep their luma bit-identical."
    default_checkpoint = "colorize-small"
    Params = ColorizeParams
    columns = {"colourfulness": float}
    worst = ("lowest", "colourfulness")
    needs_lossless = True
