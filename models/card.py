"""The card of a checkpoint: what `card.json` says about the weights next to it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Card(BaseModel):
    """The content of `card.json`.

    Attributes:
        architecture: a key of `models.architectures.ARCHITECTURES`.
        parameters: keyword arguments of the architecture.
        metrics: one entry for each set of images and parameters that the checkpoint was evaluated on.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    task: str
    architecture: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    data: str = Field("", description="the images that the network was trained on, as a sentence for people")
    metrics: list[dict[str, Any]] = Field(default_factory=list)
    sha256: str = Field(description="SHA-256 of weights.safetensors")
