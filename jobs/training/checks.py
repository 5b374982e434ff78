"""Checks before a training starts, so that an impossible one fails at once with one line."""

import torch
from torch import Tensor

from imagemill.jobs.training.config import TrainConfig
from imagemill.jobs.training.network import build_network, is_user_class, measure_contract
from imagemill.jobs.training.states import STATES_FOLDER, stored_init_digest
from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.architectures.lookup import architecture_names, find_architecture
from imagemill.models.autoencoder import Network
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.objectives.objective import Objective
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason


def build_trainable_model(config: TrainConfig) -> Network:
    """Build the model of a config and try one step on a gray crop. The import of a class of the user must be permitted.

    Raises:
        ConfigError: when the config is invalid or the model cannot be trained.
        CheckpointError: when a class of the user or of a package cannot be imported or measured.
    """
    if config.task not in OBJECTIVES:
        raise ConfigError(f"task = {config.task!r}: unknown; valid: {', '.join(OBJECTIVES)}")
    is_own = is_user_class(config)
    if not is_own and config.architecture not in architecture_names():
        valid = f"{', '.join(architecture_names())}, or MODULE:CLASS for your own"
        raise ConfigError(f"architecture = {config.architecture!r}: unknown; valid: {valid}")
    if not config.input or not config.output:
        raise ConfigError("input, output: train needs both. Give one or more folders of images with --input, and --output")
    objective = OBJECTIVES[config.task]
    if not is_own and not issubclass(find_architecture(config.architecture), objective.trainable_types):
        able = ", ".join(name for name, other in ARCHITECTURES.items() if issubclass(other, objective.trainable_types))
        raise ConfigError(
            f"architecture = {config.architecture!r}: cannot be trained for the task {config.task}; valid: {able}"
        )
    description = f"architecture {config.architecture} with parameters {config.parameters}"
    try:
        model = build_network(config, measure_contract(config))
    except (TypeError, ValueError, LookupError, RuntimeError) as e:
        raise ConfigError(f"{description}: {reason(e)}") from None
    if config.crop % model.output_stride:
        raise ConfigError(f"crop = {config.crop}: must be a multiple of {model.output_stride} for {description}")
    try:
        try_step(objective, model, config)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"task = {config.task!r}: {description} cannot be trained: {reason(e)}") from None
    return model


def try_step(objective: Objective, model: Network, config: TrainConfig) -> None:
    """Compute one loss, and the gradient of a class of the user.

    Raises:
        ConfigError: when a parameter gets no gradient, for which workers would wait forever.
    """
    objective.freeze(model)
    x = torch.full((1, 3, config.crop, config.crop), 0.5)
    loss = objective.loss(model, x, torch.Generator().manual_seed(0))["loss"]
    if is_user_class(config):
        loss.backward()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            raise ConfigError(
                f"architecture = {config.architecture!r}: the loss of {config.task} does not depend on the parameters "
                f"{', '.join(unused)}. Remove them, or set requires_grad to False"
            )
        model.zero_grad()


def read_init_digest(config: TrainConfig, run: Store) -> str | None:
    """Return the digest of the weights that a training starts from, or None without `init`.

    A resumed training uses the stored digest if the checkpoint is gone, or if the result of the training replaced it.

    Raises:
        CheckpointError: when the checkpoint is missing at the first start.
        ConfigError: when the checkpoint has another architecture.
    """
    if config.init is None:
        return None
    stored = stored_init_digest(run)
    try:
        card = checkpoints.read_card(config.init, config.storage.options_for(config.init))
    except CheckpointError:
        if stored is None:
            raise
        return stored
    if stored and card.training.get("config_sha256") == config.digest():
        return stored
    if not is_part(card, config):
        raise ConfigError(
            f"init = {config.init!r}: has the architecture {card.architecture} {card.parameters}, but the config trains "
            f"{config.architecture} {config.parameters}, which has not all of its weights"
        )
    return card.sha256


def is_part(card: Card, config: TrainConfig) -> bool:
    """Return whether the network of a config has all weights of a checkpoint: it is the same network, or has more layers."""
    if (card.architecture, card.parameters) == (config.architecture, config.parameters):
        return True
    if card.architecture != config.architecture or is_user_class(config):
        return False
    build = find_architecture(config.architecture)
    smaller, larger = (build(**parameters).state_dict() for parameters in (card.parameters, config.parameters))
    return all(name in larger and larger[name].shape == value.shape for name, value in smaller.items())


def read_initial_weights(config: TrainConfig) -> dict[str, Tensor] | None:
    """Read the weights that a training starts from, or None without `init`. Layers that `init` lacks have no weights here.

    Raises:
        CheckpointError: when the checkpoint cannot be read.
    """
    if config.init is None:
        return None
    options = config.storage.options_for(config.init)
    card = checkpoints.read_card(config.init, options)
    weights: dict[str, Tensor] = checkpoints.build(card, checkpoints.read_weights(config.init, card, options)).state_dict()
    # `Objective.finish` fits entropy tables again after the training.
    return {name: value for name, value in weights.items() if not name.startswith("entropy.")}


def check_output_outside_inputs(inputs: list[Input], output: Store) -> None:
    """Check that the output is in no input, where the next training would list its files.

    Raises:
        ConfigError: when an input contains the output.
    """
    for source in inputs:
        if not source.file and output.lies_in(source.store):
            raise ConfigError(f"output {output.url}: is inside input {source.store.url}. Choose another output")


def check_overwrite(place: Store, run: Store) -> None:
    """Check that a checkpoint folder is free, or was written by a training.

    The card of a trained checkpoint contains the digest of its config. A training that was killed while it wrote its first
    card has left states in `run`.

    Args:
        place: the checkpoint folder.
        run: the folder of states.

    Raises:
        ConfigError: when the folder has files of a checkpoint that no training wrote.
    """
    if not any(place.exists(name) for name in (checkpoints.WEIGHTS, checkpoints.CARD)):
        return
    try:
        is_own = "config_sha256" in checkpoints.read_card(place.url, place.config.options_for(place.url)).training
    except CheckpointError:
        is_own = not place.exists(checkpoints.CARD) and run.has_files(STATES_FOLDER)
    if not is_own:
        raise ConfigError(
            f"output {place.url}: contains a checkpoint that no training wrote. Choose another output or name, or pass "
            "--overwrite"
        )
