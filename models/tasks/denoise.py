"""Denoise: additive Gaussian noise is taken away; the level is estimated unless it is given."""

from pydantic import Field

from imagemill.models.tasks.task import Params, Task


class DenoiseParams(Params):
    sigma: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Remove noise of this standard deviation, in 8-bit levels. Default: estimated from each image.",
    )


class Denoise(Task):
    name = "denoise"
    summary = "Remove Gaussian noise from photos."
    default_checkpoint = "denoise-small"
    Params = DenoiseParams
    columns = {"sigma": float}
    worst = ("highest", "sigma")
