"""Denoise: remove additive Gaussian noise of a given or estimated level."""

from pydantic import Field

from imagemill.models.tasks.task import Params, Task


class DenoiseParams(Params):
    """Parameters of `denoise`."""

    sigma: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Remove noise of this standard deviation, in 8-bit levels. Default: estimated from each image.",
    )


class Denoise(Task):
    """Remove Gaussian noise."""

    name = "denoise"
    summary = "Remove Gaussian noise from photos."
    default_checkpoint = "denoise-small"
    Params = DenoiseParams
    columns = {"sigma": float}
    worst = ("highest", "sigma")
