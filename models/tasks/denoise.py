"""Denoise: additive Gaussian noise is taken away; the level is estimated unless it is given."""

from pydantic import Field

from imagemill.models.tasks.task import Params, Task


class DenoiseParams(Params):
    sigma: float | None = Field(None, ge=0, le=100, description="noise level in 8-bit levels; estimated when absent")


class Denoise(Task):
    name = "denoise"
    default_checkpoint = "denoise-small"
    Params = DenoiseParams
    columns = {"sigma": float}
    worst = ("highest", "sigma")
