"""Denoise: remove additive Gaussian noise of a given or estimated level."""

from typing import Any

from pydantic import Field

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks.image_params import ImageParams, check_tile
from imagemill.models.tasks.task import Task


class DenoiseParams(ImageParams):
    """Parameters of `denoise`."""

    sigma: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Remove noise of this standard deviation, in 8-bit levels. Default: estimated from each image. An "
        "imported network that takes a noise level does not estimate it, and gets 15 by default; other imported networks "
        "take none.",
    )


class Denoise(Task):
    """Remove Gaussian noise."""

    name = "denoise"
    summary = "Remove Gaussian noise from photos."
    default_checkpoint = "denoise-small"
    Params = DenoiseParams
    # Null for a network that takes no noise level.
    columns = {"sigma": float}
    worst = ("highest", "sigma")

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Refuse a noise level for a network that takes none, and a tiling that the network does not need."""
        if params.sigma is not None and card.contract and not card.contract.noise_level:
            raise CheckpointError(f"params.sigma={params.sigma:g}: checkpoint {name} takes no noise level. Omit sigma")
        check_tile(name, card, params)
