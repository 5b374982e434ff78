"""The network of a training: an architecture of imagemill, or a class of the user."""

import hashlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from imagemill.jobs.training.config import TrainConfig
from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures.lookup import find_architecture
from imagemill.models.autoencoder import Network
from imagemill.models.card import Card
from imagemill.models.code_check import source_digest
from imagemill.models.contract import Contract
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.objectives.requirements import find_missing, trainable_tasks
from imagemill.models.routes import python_route
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.routes.weights import pack_weights
from imagemill.models.type_checks import require_value
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.user_code import UserCode, read_user_code

INPUT_RANGE = (0.0, 1.0)
"""The values of black and white that a class of the user takes and returns."""


@dataclass(frozen=True)
class NetworkPlan:
    """How workers build the network of a training.

    Attributes:
        code: the code of a class of the user.
        contract: how a class of the user is called.
        weights: the weights to start from; None for random weights and for a resumed training.
    """

    code: UserCode | None
    contract: Contract | None
    weights: dict[str, Tensor] | None


def is_user_class(config: TrainConfig) -> bool:
    """Return whether the architecture is MODULE:CLASS of the user."""
    return ":" in config.architecture


def read_code(config: TrainConfig) -> UserCode | None:
    """Read the code of the user; None for an architecture of imagemill.

    Raises:
        ConfigError: when there is no permission to import the code, or it cannot be read.
    """
    if not is_user_class(config):
        if config.code:
            raise ConfigError(f"code = {config.code!r}: only for an architecture MODULE:CLASS, not {config.architecture}")
        return None
    if config.code is None:
        package = config.architecture.partition(":")[0].partition(".")[0]
        raise ConfigError(
            f"architecture = {config.architecture!r}: runs Python code. To allow this, set code (--code) to the folder that "
            f"holds {package}, or to installed if {package} is installed"
        )
    return read_user_code(config.code)


def build_network(config: TrainConfig, contract: Contract | None = None) -> Network:
    """Build the network of a config with random weights.

    Args:
        config: the training. The import of a class of the user must be permitted.
        contract: how a class of the user is called; see `measure_contract`.
    """
    if not is_user_class(config):
        return find_architecture(config.architecture)(**config.parameters)
    module = build_module(config)
    if isinstance(module, OBJECTIVES[config.task].trainable_types):
        return module
    contract = require_value(contract, "the contract of the network")
    if contract.latent:
        return FloatCoder(module, contract, python_route.encode_module, python_route.decode_module)
    return ImageNetwork(module, contract)


def build_module(config: TrainConfig) -> nn.Module:
    """Build a class of the user in training mode. The import of the class must be permitted.

    Raises:
        CheckpointError: when there is no such class, or it does not take the parameters.
        ConfigError: when the class cannot be trained for the task.
    """
    cls = python_route.import_class(config.architecture)
    if missing := find_missing(cls, config.task):
        raise ConfigError(
            f"architecture = {config.architecture!r}: cannot be trained for {config.task}: the class lacks {missing}. "
            f"{describe_tasks(trainable_tasks(cls))}"
        )
    return python_route.build_module(cls, config.architecture, config.parameters).train()


def measure_contract(config: TrainConfig, network: Network | None = None) -> Contract | None:
    """Measure how a class of the user is called.

    Args:
        config: the training.
        network: the trained network of `build_network`; random weights by default.

    Returns:
        None for an architecture of imagemill and its subclasses, which have the contract in their class.

    Raises:
        CheckpointError: when the class cannot be imported, or the network fails for an image.
        ConfigError: when the class cannot be trained for the task.
    """
    if not is_user_class(config):
        return None
    module = build_module(config) if network is None else unwrap(network)
    if isinstance(module, OBJECTIVES[config.task].trainable_types):
        return None
    name, task = config.architecture, config.task
    contract = python_route.recognise(name, config.parameters, module.state_dict(), INPUT_RANGE, task).contract
    if (contract.scale > 1) != (task == "upscale"):
        tasks = [other for other in trainable_tasks(type(module)) if (other == "upscale") == (contract.scale > 1)]
        size = f"enlarges images to {contract.scale} times their size" if contract.scale > 1 else "keeps the size of images"
        raise ConfigError(f"architecture = {name!r}: cannot be trained for {task}: it {size}. {describe_tasks(tasks)}")
    return contract


def contract_of(network: Network) -> Contract | None:
    """Return the contract of a network of `build_network`."""
    return network.contract if isinstance(network, ImageNetwork | FloatCoder) else None


def unwrap(network: Network) -> nn.Module:
    """Return the class of the user in a network."""
    return network.module if isinstance(network, ImageNetwork | FloatCoder) else network


def describe_tasks(tasks: list[str]) -> str:
    """Say for which tasks a class can be trained."""
    return f"It can be trained for {', '.join(tasks)}" if tasks else "It cannot be trained for any other task"


def save_checkpoint(url: str, config: TrainConfig, model: Network, card: dict[str, Any]) -> Card:
    """Write a checkpoint folder: weights of imagemill in float16, weights of a class of the user in their own format.

    Args:
        url: the folder.
        config: the training.
        model: the trained network.
        card: fields of the card that do not depend on the architecture.
    """
    options = config.storage.options_for(url)
    if not is_user_class(config):
        return checkpoints.save(url, model, card, options)
    module, contract = unwrap(model), measure_contract(config, model)
    code_sha256 = source_digest(config.architecture)
    weights = pack_weights(module.state_dict(), "python", config.architecture, config.parameters, contract, code_sha256)
    digest = hashlib.sha256(weights).hexdigest()
    complete = Card(**card, route="python", contract=contract, code_sha256=code_sha256, sha256=digest)
    checkpoints.write(url, complete, weights, options)
    return complete
