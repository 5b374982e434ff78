"""Networks of imagemill: the classes of `models.architectures`."""

from torch import Tensor

from imagemill.models.architectures import ARCHITECTURES
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
    if card.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"checkpoint {card.name}: unknown architecture {card.architecture!r}. Valid: {', '.join(ARCHITECTURES)}"
        )
    model = ARCHITECTURES[card.architecture](**card.parameters)
    model.load_state_dict(tensors)
    return model
