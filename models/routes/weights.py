"""Load weights into a network of another library, and say all that does not fit in one line."""

from torch import Tensor, nn

from imagemill.models.errors import CheckpointError

SHOWN = 20
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
    rest = f" and {len(names) - SHOWN:,} others" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
