"""Compress: encode images as latents, quantised to integers or as floats."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
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

    def version_values(self, params: Any, card: Card) -> dict[str, Any]:
        """Return the parameters that the version of an output depends on; float latents have no step and no coding."""
        values = super().version_values(params, card)
        has_floats = card.contract is not None and card.contract.latent is not None
        return {key: value for key, value in values.items() if not (has_floats and key in FOR_SYMBOLS)}

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Refuse parameters that mean nothing for the latents of a checkpoint, and samples of what is no distribution."""
        latent = card.contract.latent if card.contract else None
        keys, kind = (FOR_SYMBOLS, "floats, which are not quantised") if latent else (FOR_FLOATS, "integers")
        if given := [f"params.{key}" for key in keys if key in params.model_fields_set]:
            pronoun = "it" if len(given) == 1 else "them"
            raise CheckpointError(f"{', '.join(given)}: the latents of checkpoint {name} are {kind}. Remove {pronoun}")
        if latent and params.latents == "sample" and not latent.is_distribution:
            raise CheckpointError(
                f"params.latents='sample': the encoder of checkpoint {name} returns no distribution. Remove the parameter"
            )
