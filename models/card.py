"""The card of a checkpoint: what `card.json` says about the weights next to it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from imagemill.models.contract import Contract

Route = Literal["imagemill", "diffusers", "spandrel", "python"]


class Origin(BaseModel):
    """Where imported weights come from.

    Attributes:
        library: the library that defines the network, and its version.
        files: name and SHA-256 of each file that was imported.
        dtypes: number formats of the weights.
    """

    model_config = ConfigDict(extra="forbid")

    library: str
    files: dict[str, str]
    dtypes: list[str]


class Card(BaseModel):
    """The content of `card.json`.

    Attributes:
        route: which library defines the network: imagemill, diffusers, spandrel, or an importable Python module.
        architecture: for imagemill, a name of `models.architectures.lookup`; for diffusers and spandrel, the name that
            the library gives it; for python, MODULE:CLASS.
        parameters: keyword arguments of the architecture.
        contract: how an imported network is called; None for a network of imagemill, which has the contract in its class.
        code_sha256: for python, the digest of the source code that defines the class.
        origin: where the weights come from, for an imported checkpoint.
        metrics: one entry for each set of images and parameters that the checkpoint was evaluated on.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    task: str
    route: Route = "imagemill"
    architecture: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    data: str = Field("", description="the images that the network was trained on, as a sentence for people")
    metrics: list[dict[str, Any]] = Field(default_factory=list)
    contract: Contract | None = None
    code_sha256: str | None = None
    origin: Origin | None = None
    sha256: str = Field(description="SHA-256 of weights.safetensors")
