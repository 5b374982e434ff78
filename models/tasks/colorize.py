"""Colorize: chroma is predicted from luma, which stays exactly as it is."""

from pydantic import Field

from imagemill.models.tasks.task import Params, Task


class ColorizeParams(Params):
    saturation: float = Field(
        1.0, ge=0, le=4, description="factor of the chroma: predictions are an average of what it could be, so they are pale"
    )


class Colorize(Task):
    name = "colorize"
    default_checkpoint = "colorize-small"
    Params = ColorizeParams
    columns = {"colourfulness": float}
    worst = ("lowest", "colourfulness")
    exact = True
