"""Load weights into a network of another library, and write them. What does not fit is said in one line."""

import json
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from imagemill.models.card import Route
from imagemill.models.contract import Contract
from imagemill.models.errors import CheckpointError

METADATA = "imagemill"
"""Key in the header of weights.safetensors: what the digest of a checkpoint covers in addition to the weights."""
SHOWN = 3
"""Names that a message lists of each problem."""


def load_weights(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load weights into a module.

    Args:
        module: the network.
        tensors: its weights.
        name: the architecture, for messages.

    Raises:
        CheckpointError: when weights are missing, unknown or of another shape; the message lists them.
    """
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unknown": [key for key in tensors if key not in expected],
        "of another shape": [
            f"{key} {shape_text(tensors[key])} instead of {shape_text(value)}"
            for key, value in expected.items()
            if key in tensors and tensors[key].shape != value.shape
        ],
    }
    lines = [f"{kind}: {join_names(names)}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"the weights do not fit {name}: {'; '.join(lines)}")
    module.load_state_dict(tensors)


def shape_text(tensor: Tensor) -> str:
    """Return the shape of a tensor, such as 64×3×3×3."""
    return "×".join(map(str, tensor.shape)) or "a number"


def join_names(names: list[str]) -> str:
    """Join names; of many, the first ones and the number of the others."""
    more = len(names) - SHOWN
    rest = f" and {more:,} other{'s' if more > 1 else ''}" if more > 0 else ""
    return ", ".join(names[:SHOWN]) + rest


def pack_weights(
    tensors: dict[str, Tensor],
    route: Route,
    architecture: str,
    parameters: dict[str, Any],
    contract: Contract | None,
    code_sha256: str | None,
) -> bytes:
    """Return the content of weights.safetensors for a network of another library or of a user.

    The header of the weights holds the architecture and the contract, so that the digest of a checkpoint, by which rows are
    known, covers all that changes pixels.

    Args:
        tensors: the weights, in their own number formats.
        route: as in `card.Card`, like all other arguments.
        architecture: the name of the network.
        parameters: its arguments.
        contract: how it is called.
        code_sha256: digest of the code of a user.
    """
    network = {
        "route": route,
        "architecture": architecture,
        "parameters": parameters,
        "contract": contract.digest_values() if contract else None,
        "code_sha256": code_sha256,
    }
    data: bytes = safetensors.torch.save(without_shared_memory(tensors), {METADATA: json.dumps(network, sort_keys=True)})
    return data


def without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share their memory with an earlier one, which the safetensors format does not allow."""
    result: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        result[name] = tensor.contiguous().clone() if address in storages else tensor.contiguous()
        storages.add(address)
    return result
