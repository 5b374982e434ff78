"""What is looked at before a training starts, so that what cannot work ends it in one line."""

import torch
from torch import Tensor

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.states import FOLDER, kept_init
from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.card import CheckpointError
from imagemill.models.objectives import OBJECTIVES
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason


def rehearsed(config: TrainConfig) -> Autoencoder:
    """The model, which has done one step on a black crop. Raises: ConfigError for what could not be trained."""
    for key, table in (("task", OBJECTIVES), ("architecture", ARCHITECTURES)):
        if getattr(config, key) not in table:
            raise ConfigError(f"{key} = {getattr(config, key)!r}; valid: {', '.join(table)}")
    if not config.input or not config.output:
        raise ConfigError("train needs an input (one or more folders of images) and an output")
    objective, architecture = OBJECTIVES[config.task], ARCHITECTURES[config.architecture]
    if not issubclass(architecture, objective.trainable_type):
        able = ", ".join(name for name, other in ARCHITECTURES.items() if issubclass(other, objective.trainable_type))
        raise ConfigError(f"task = {config.task!r} cannot be learned by architecture {config.architecture}; valid: {able}")
    what = f"architecture {config.architecture} with parameters {config.parameters}"
    try:
        model = architecture(**config.parameters)
    except (TypeError, ValueError, LookupError, RuntimeError) as e:
        raise ConfigError(f"{what}: {reason(e)}") from None
    if config.crop % model.output_stride:
        raise ConfigError(f"crop = {config.crop}: {what} takes multiples of {model.output_stride}")
    try:
        objective.freeze(model)
        objective.loss(model, torch.zeros(1, 3, config.crop, config.crop), torch.Generator().manual_seed(0))
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"task = {config.task!r} cannot be learned by {what}: {reason(e)}") from None
    return model


def init_of(config: TrainConfig, run: Store) -> str | None:
    """The digest of the weights that a run starts from, or has started from: they may be gone since, and where a training
    takes the place of its init its own result lies there.

    Raises: CheckpointError when there are none; ConfigError when they are of another architecture.
    """
    if config.init is None:
        return None
    kept = kept_init(run)
    try:
        card = checkpoints.read_card(config.init, config.storage.options_for(config.init))
    except CheckpointError:
        if kept is None:
            raise
        return kept
    if kept and card.training.get("config_sha256") == config.digest():
        return kept
    if (card.architecture, card.parameters) != (config.architecture, config.parameters):
        raise ConfigError(f"init = {config.init!r} is {card.architecture} {card.parameters}, not what is to be trained")
    return card.sha256


def initial_weights(config: TrainConfig) -> dict[str, Tensor] | None:
    """The weights that a training starts from. Raises: CheckpointError."""
    if config.init is None:
        return None
    options = config.storage.options_for(config.init)
    card = checkpoints.read_card(config.init, options)
    weights: dict[str, Tensor] = checkpoints.build(card, checkpoints.read_weights(config.init, card, options)).state_dict()
    # Whole numbers are what a task finished the model with: not to be trained, and fitted anew.
    return {name: value for name, value in weights.items() if value.is_floating_point()}


def refuse_nested(inputs: list[Input], output: Store) -> None:
    """Raises: ConfigError when the output would be listed as input the next time."""
    for source in inputs:
        if not source.file and output.lies_in(source.store):
            raise ConfigError(f"output {output.url} lies in input {source.store.url}")


def refuse_foreign(place: Store, run: Store) -> None:
    """Raises: ConfigError when a checkpoint, or files called as those of one, lie in a place that no training wrote.

    The card of a training says which; one that was killed while it wrote its first has left its states in `run`.
    """
    if not any(place.exists(name) for name in (checkpoints.WEIGHTS, checkpoints.CARD)):
        return
    try:
        is_own = "config_sha256" in checkpoints.read_card(place.url, place.config.options_for(place.url)).training
    except CheckpointError:
        is_own = not place.exists(checkpoints.CARD) and run.has_files(FOLDER)
    if not is_own:
        raise ConfigError(
            f"{place.url} holds a checkpoint that no training wrote: give another output or name, or --overwrite"
        )
