"""The checkpoint that lies in OUTPUT beside what it made."""

from typing import TYPE_CHECKING

from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import Card, CheckpointError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason

if TYPE_CHECKING:
    from imagemill.models.autoencoder import Autoencoder


def store_checkpoint(output: Store, card: Card, weights: bytes) -> None:
    """Put a checkpoint beside what it makes: every worker can read it there, and OUTPUT stays decodable by itself."""
    folder = checkpoint_folder(card.sha256)
    if not output.exists(f"{folder}/{checkpoints.CARD}"):
        output.write(f"{folder}/{checkpoints.WEIGHTS}", weights)
        output.write(f"{folder}/{checkpoints.CARD}", card.model_dump_json(indent=2).encode())


def checkpoint_folder(sha256: str) -> str:
    return f"checkpoints/{sha256[:16]}"


def read_stored_checkpoint(output: Store, sha256: str) -> tuple[Card, bytes]:
    """What `keep_checkpoint` left in OUTPUT: the card, and the weights whose digest it says. Raises: CheckpointError."""
    folder = checkpoint_folder(sha256)
    try:
        card = Card.model_validate_json(output.read(f"{folder}/{checkpoints.CARD}"))
        weights = output.read(f"{folder}/{checkpoints.WEIGHTS}")
    except FileNotFoundError as e:
        raise CheckpointError(f"{output.uri(folder)}: the checkpoint that made the rows is missing") from e
    except ValueError as e:
        raise CheckpointError(f"{output.uri(folder)}: {checkpoints.CARD} is damaged: {reason(e)}") from e
    checkpoints.check_digest(weights, card, output.uri(folder))
    return card, weights


def load_stored_model(output: Store, sha256: str, device: str) -> "Autoencoder":
    """The model of a checkpoint that lies in OUTPUT, on a device. Raises: CheckpointError."""
    card, weights = read_stored_checkpoint(output, sha256)
    return checkpoints.load_model(card, weights, device)
