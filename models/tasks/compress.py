"""Compress: encode images as quantised latents."""

from typing import Literal

from pydantic import Field

from imagemill.models.tasks.task import Params, Task

# Below 18, the means of black and white blocks exceed the range of a symbol: more bits and a worse image.
MIN_STEP, MAX_STEP = 18.0, 128.0


class CompressParams(Params):
    """Parameters of `compress`."""

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
    """Encode images as quantised latents, which `imagemill decode` turns back into images."""

    name = "compress"
    summary = "Compress images to integer latents in Parquet."
    default_checkpoint = "compress-small"
    Params = CompressParams
    columns = {"step": float, "psnr_db": float, "bits_per_pixel": float}
    worst = ("lowest", "psnr_db")
    stores_latent = True
