"""Networks that users define: a class of an importable Python module."""

import hashlib
import importlib
import inspect
from typing import Any

from torch import Tensor, nn

from imagemill.models.autoencoder import Network
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.type_checks import require_value


def build(card: Card, tensors: dict[str, Tensor]) -> Network:
    """Build the network of a card with its weights.

    Args:
        card: its `architecture` is MODULE:CLASS, and its `parameters` are the arguments of the class.
        tensors: the weights.

    Raises:
        CheckpointError: when the class cannot be imported, or its file has changed since the import of the checkpoint.
        RuntimeError: when the weights do not fit.
    """
    cls = import_class(card.architecture)
    if source_digest(cls) != card.code_sha256:
        raise CheckpointError(
            f"checkpoint {card.name}: {inspect.getsourcefile(cls)} has changed since the checkpoint was imported. "
            "Run `imagemill models import` again"
        )
    contract = require_value(card.contract, "the contract")
    module = cls(**card.parameters)
    module.load_state_dict(tensors)
    return FloatCoder(module, contract, encode_module, decode_module) if contract.latent else ImageNetwork(module, contract)


def import_class(name: str) -> type[nn.Module]:
    """Import a subclass of nn.Module by MODULE:CLASS.

    Raises:
        CheckpointError: when there is no such class.
    """
    module_name, _, class_name = name.partition(":")
    try:
        cls: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as e:
        raise CheckpointError(f"architecture {name}: cannot be imported: {e}. Give MODULE:CLASS and --code FOLDER") from None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CheckpointError(f"architecture {name}: is not a subclass of torch.nn.Module")
    return cls


def source_digest(cls: type[nn.Module]) -> str:
    """Return the SHA-256 of the file that defines a class."""
    return hashlib.sha256(inspect.getsource(importlib.import_module(cls.__module__)).encode()).hexdigest()


def encode_module(module: Any, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the latents, or the mode and the standard deviation of a distribution with `mode()` and `std`."""
    result = module.encode(x_BCHW)
    return (result, None) if isinstance(result, Tensor) else (result.mode(), result.std)


def decode_module(module: Any, z_Bchw: Tensor) -> Tensor:
    """Decode latents."""
    images: Tensor = module.decode(z_Bchw)
    return images
