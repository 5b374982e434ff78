"""Compress: encode images as latents, quantised to integers or as floats."""

from typing import ClassVar, Literal

from pydantic import Field

from imagemill.models.tasks.task import Params, Task

# Below 18, the means of black and white blocks exceed the range of a symbol: more bits and a worse image.
MIN_STEP, MAX_STEP = 18.0, 128.0

FOR_SYMBOLS, FOR_FLOATS = ("step", "coding"), ("latents", "latent_dtype")
"""Parameters that only networks with integer latents use, and parameters that only networks with float latents use."""


class CompressParams(Params):
    """Parameters of `compress`."""

    ADDED: ClassVar[frozenset[str]] = frozenset(FOR_FLOATS)

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
    latents: Literal["mode", "sample"] = Field(
        "mode",
        description="Checkpoints with float latents: store the mode of each distribution that the encoder returns, or draw "
        "a sample, with a seed from the name of the image.",
    )
    latent_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="Checkpoints with float latents: store values as they are, or rounded to float16 for half the size.",
    )


class Compress(Task):
    """Encode images as latents, which `imagemill decode` turns back into images."""

    name = "compress"
    summary = "Encode images as latents in Parquet: integers, or the floats of your own autoencoder."
    default_checkpoint = "compress-small"
    Params = CompressParams
    columns = {"step": float, "psnr_db": float, "bits_per_pixel": float}
    worst = ("lowest", "psnr_db")
    stores_latent = True
    # Latents of one collection must not depend on the hardware.
    dtype = "float32"
