"""Checkpoints in OUTPUT: a run stores its checkpoint there, so that workers can read it and rows can be decoded later."""

from typing import TYPE_CHECKING

from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason

if TYPE_CHECKING:
    from imagemill.models.autoencoder import Network


def store_checkpoint(output: Store, card: Card, weights: bytes) -> None:
    """Store a checkpoint in OUTPUT, unless it is there already.

    Args:
        output: the OUTPUT.
        card: the card of the checkpoint.
        weights: the safetensors file.
    """
    folder = checkpoint_folder(card.sha256)
    if not output.exists(f"{folder}/{checkpoints.CARD}"):
        output.write(f"{folder}/{checkpoints.WEIGHTS}", weights)
        output.write(f"{folder}/{checkpoints.CARD}", card.model_dump_json(indent=2).encode())


def checkpoint_folder(sha256: str) -> str:
    """Return the folder of a checkpoint in OUTPUT, by the digest of its weights."""
    return f"checkpoints/{sha256[:16]}"


def read_stored_card(output: Store, sha256: str) -> Card:
    """Read the card of a checkpoint that `store_checkpoint` wrote.

    Raises:
        CheckpointError: when the card is missing or damaged.
    """
    folder = checkpoint_folder(sha256)
    try:
        return Card.model_validate_json(output.read(f"{folder}/{checkpoints.CARD}"))
    except FileNotFoundError as e:
        raise missing_checkpoint(output, folder) from e
    except ValueError as e:
        raise CheckpointError(f"{output.uri(folder)}: {checkpoints.CARD} is damaged: {reason(e)}") from e


def read_stored_checkpoint(output: Store, sha256: str) -> tuple[Card, bytes]:
    """Read a checkpoint that `store_checkpoint` wrote.

    Returns:
        The card, and the weights, whose digest is checked.

    Raises:
        CheckpointError: when the checkpoint is missing or damaged.
    """
    folder = checkpoint_folder(sha256)
    card = read_stored_card(output, sha256)
    try:
        weights = output.read(f"{folder}/{checkpoints.WEIGHTS}")
    except FileNotFoundError as e:
        raise missing_checkpoint(output, folder) from e
    checkpoints.check_digest(weights, card, output.uri(folder))
    return card, weights


def missing_checkpoint(output: Store, folder: str) -> CheckpointError:
    """Return the error for a checkpoint folder without its files."""
    return CheckpointError(f"{output.uri(folder)}: the checkpoint that made the rows is missing")


def load_stored_model(output: Store, sha256: str, device: str) -> "Network":
    """Load the model of a checkpoint in OUTPUT onto a device.

    Raises:
        CheckpointError: when the checkpoint is missing or damaged.
    """
    card, weights = read_stored_checkpoint(output, sha256)
    return checkpoints.load_model(card, weights, device)
