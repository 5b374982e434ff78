"""Networks of imagemill: the classes of `models.architectures`, and those that installed packages register."""

from torch import Tensor

from imagemill.models.architectures.lookup import find_architecture
from imagemill.models.autoencoder import Network
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError


def build(card: Card, tensors: dict[str, Tensor]) -> Network:
    """Build the network of a card with its weights.

    Raises:
        CheckpointError: when the architecture is unknown.
        TypeError: when the parameters do not fit.
        RuntimeError: when the weights do not fit.
    """
    try:
        architecture = find_architecture(card.architecture)
    except CheckpointError as e:
        raise CheckpointError(f"checkpoint {card.name}: {e}") from None
    model = architecture(**card.parameters)
    model.load_state_dict(tensors)
    return model
