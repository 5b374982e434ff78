"""The configuration of a training."""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, field_validator

from imagemill.models.checkpoint import PICKLES
from imagemill.pipeline.config import Strict
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage_config import StorageConfig


class TrainConfig(Strict):
    """The configuration of `imagemill train`."""

    name: str = Field(description="Name the checkpoint.", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    task: str = Field(description="Train a network for this task.")
    architecture: str = Field(
        description="Train this architecture (imagemill models lists them), or your own class, as MODULE:CLASS."
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="Set arguments of the architecture.")
    code: str | None = Field(
        None,
        description="Allow the Python code of your own architecture: a folder that holds it, or installed.",
    )
    input: list[str] = Field(
        default_factory=list, description="Train on these folders, buckets, shards or manifests of clean images."
    )
    output: str | None = Field(
        None, description="Write the checkpoint and the training state to this folder or s3://bucket/prefix."
    )
    init: str | None = Field(
        None,
        description="Start from the weights of this checkpoint: a bundled name, a folder or a URL. It may lack layers.",
    )
    epochs: int = Field(ge=1, description="Train for this many passes over the images.")
    crop: int = Field(ge=8, description="Train on square crops of this side, in pixels.")
    crops_per_image: int = Field(8, ge=1, description="Cut this many crops from each image in an epoch.")
    augment: Literal["turn", "flip", "none"] = Field(
        "turn",
        description="Flip crops and turn them by quarters (turn), flip them left to right (flip), or leave them (none).",
    )
    validation_share: float = Field(0.02, gt=0, lt=1, description="Keep this share of the images for validation.")
    max_broken_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Stop with exit code 3 before training if more than this share of the images is unreadable.",
    )
    batch_size: int = Field(16, ge=1, description="Train on this many crops per worker and step.")
    learning_rate: float = Field(1e-3, gt=0, description="Set the highest learning rate.")
    encoder_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Multiply the learning rate of the layers in `encoder` by this factor. Choose 0.1 if `init` gives an "
        "encoder that has learned much more than the other layers.",
    )
    warmup_steps: int = Field(200, ge=0, description="Raise the learning rate linearly over this many steps.")
    weight_decay: float = Field(1e-4, ge=0, description="Set the weight decay of AdamW.")
    clip_norm: float = Field(1.0, gt=0, description="Clip gradients to this norm.")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Average the weights exponentially with this decay.")
    workers: int = Field(2, ge=1, description="Train with this many workers.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed the random numbers.")
    source: SourceConfig = SourceConfig()
    storage: StorageConfig = StorageConfig()
    address: str | None = Field(None, description="Train on the Ray cluster at this address. Default: on this machine.")

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        """Refuse names that end like pickled weights, because every command would refuse the checkpoint."""
        if name.endswith(PICKLES):
            raise ValueError(f"must not end in {', '.join(PICKLES)}, because pickled weights are refused")
        return name

    def digest(self) -> str:
        """Return a hash of the keys that change the result. It is part of the folder of states.

        A changed config therefore never resumes the states of another one.
        """
        # Only keys without their default count, so that new keys do not change the digests of existing configs.
        content = self.model_dump(
            exclude={"output", "storage", "address", "max_broken_fraction", "code"}, exclude_defaults=True
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
