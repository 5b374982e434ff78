"""Compress: images to integer latents; what is taken away is precision."""

from typing import Literal

from pydantic import Field

from imagemill.models.tasks.task import Params, Task

# Below 18 the means of black and white blocks outgrow a symbol: it costs more bits and gives a worse picture.
MIN_STEP, MAX_STEP = 18.0, 128.0


class CompressParams(Params):
    step: float = Field(
        26.0,
        ge=MIN_STEP,
        le=MAX_STEP,
        description="Quantise with this step, in 8-bit levels. A larger step gives smaller files and lower quality.",
    )
    coding: Literal["plain", "coded"] = Field(
        "plain",
        description="Store latents as lists of integers that any Parquet reader opens (plain), or as entropy-coded payloads "
        "that are smaller and need imagemill to decode (coded).",
    )


class Compress(Task):
    name = "compress"
    summary = "Compress images to integer latents in Parquet."
    default_checkpoint = "compress-small"
    Params = CompressParams
    columns = {"step": float, "psnr_db": float, "bits_per_pixel": float}
    worst = ("lowest", "psnr_db")
    stores_latent = True
