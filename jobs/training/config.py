"""What a training is told."""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, field_validator

from imagemill.models.checkpoint import PICKLES
from imagemill.pipeline.config import Strict
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import StorageConfig


class TrainConfig(Strict):
    """What `imagemill train` does."""

    name: str = Field(description="name of the checkpoint", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    task: str
    architecture: str
    parameters: dict[str, Any] = Field(default_factory=dict, description="arguments of the architecture")
    input: list[str] = Field(default_factory=list, description="folders, buckets, shards or manifests of clean images")
    output: str | None = None
    init: str | None = Field(None, description="checkpoint whose weights it starts from: bundled name, folder or URL")
    epochs: int = Field(ge=1)
    crop: int = Field(ge=8, description="side of a training crop in pixels")
    crops_per_image: int = Field(8, ge=1)
    augment: Literal["turn", "flip", "none"] = Field(
        "turn", description="crops are flipped and turned by quarters, flipped left to right, or left as they are"
    )
    validation_share: float = Field(0.02, gt=0, lt=1)
    max_broken_fraction: float = Field(0.1, ge=0, le=1, description="more unreadable images than this share is exit 3")
    batch_size: int = Field(16, ge=1, description="crops for each worker and step")
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    workers: int = Field(2, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    source: SourceConfig = SourceConfig()
    storage: StorageConfig = StorageConfig()
    address: str | None = None

    @field_validator("name")
    @classmethod
    def refuse_pickle(cls, name: str) -> str:
        if name.endswith(PICKLES):
            raise ValueError("it ends as pickled weights do, and every command would refuse it as such")
        return name

    def digest(self) -> str:
        """Hash of all that changes the result: a run's name carries it, so a changed config never resumes an old run."""
        # Keys that are added later, and left at their defaults, leave the digest as it was.
        content = self.model_dump(exclude={"output", "storage", "address", "max_broken_fraction"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
