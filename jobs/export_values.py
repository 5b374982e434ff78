"""What the values of an export mean: dequantised symbols, or the floats of an encoder, and how trainers scale the floats."""

from collections.abc import Callable
from typing import Any

import numpy as np

from imagemill.models.card import Card
from imagemill.models.contract import LatentContract
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.latent_values import LatentCoders
from imagemill.pipeline.schema import LATENT_ZERO_POINT

Scale = Callable[[np.ndarray], np.ndarray]
"""Maps latents (N,C,h,w) float32 to the latents of an export."""


def float_latents(card: Card) -> LatentContract | None:
    """Return what a card says about float latents; None for a checkpoint whose latents are symbols."""
    return card.contract.latent if card.contract else None


def choose_scale(card: Card, scaled: bool) -> Scale:
    """Return the function that maps stored latents to exported latents.

    Args:
        card: the checkpoint of the latents.
        scaled: subtract shift_factor, then multiply by scaling_factor, as trainers of diffusion models do.

    Raises:
        ConfigError: when the checkpoint has no scaling_factor.
    """
    if not scaled:
        return lambda latents: latents
    latent = float_latents(card)
    if latent is None or latent.scaling_factor is None:
        raise ConfigError(f"--scaled: the checkpoint {card.name} has no scaling_factor. Leave --scaled out")
    shift, factor = np.float32(latent.shift_factor or 0), np.float32(latent.scaling_factor)
    return lambda latents: (latents - shift) * factor


def describe_values(card: Card, coders: LatentCoders, steps: list[float], scaled: bool) -> dict[str, Any]:
    """Return what the values of an export mean, for its manifest and the metadata of its parts.

    Args:
        card: the checkpoint of the latents.
        coders: the models of the output.
        steps: quantiser steps of the latents.
        scaled: whether the values are scaled, see `choose_scale`.
    """
    model = {"model_id": card.name, "checkpoint_sha256": card.sha256}
    latent = float_latents(card)
    if latent:
        exported = "(encoded - shift_factor) * scaling_factor" if scaled else "what the encoder returned"
        factors = {"scaling_factor": latent.scaling_factor, "shift_factor": latent.shift_factor}
        return {**model, "values": f"latent is (C,h,w), row-major: {exported}", "scaled": scaled, **factors}
    return {
        **model,
        "values": "value = (symbol - zero) * width[step][channel]; latent is (C,h,w), row-major",
        "zero": coders.dequantisation(card.sha256, steps[0])[1],
        "width": {str(step): coders.dequantisation(card.sha256, step)[0].tolist() for step in steps},
        "stored_symbol": f"results/ holds symbol + {LATENT_ZERO_POINT} as uint8",
    }
